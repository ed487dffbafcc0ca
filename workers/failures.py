"""What went wrong, in the words of a job's document."""

from __future__ import annotations

import logging

import torch

from reward_models.actor import RewardUnavailable
from reward_models.contracts import NotFinite
from reward_models.multimodal_questions import JudgeUnavailable, UnparsedAnswers
from service.jobs.errors import StoreUnavailable
from service.jobs.states import FailureCode
from workers.mesh import EmptyMesh, InvalidGlb
from workers.publish import NotStored
from workers.scene import NanDivergence

__all__ = ["WeightsMissing", "failure_of"]

log = logging.getLogger(__name__)


class WeightsMissing(LookupError):
    """A job asks for a network that this worker does not hold."""


def failure_of(error: Exception) -> tuple[FailureCode, str]:
    """Translate an exception that ended a scene into its failure code and a detail for the user.

    What nobody foresaw is `internal`, with the traceback in the worker's log.
    """
    match error:
        case NanDivergence() | NotFinite():
            return FailureCode.NAN_DIVERGENCE, str(error)
        case EmptyMesh():
            return FailureCode.EMPTY_MESH, str(error)
        case InvalidGlb():
            return FailureCode.INVALID_GLB, str(error)
        case MemoryError() | torch.OutOfMemoryError():
            detail = (
                "the worker ran out of memory. Ask for a smaller mesh.texture_px, or give workers fewer slots"
            )
            return FailureCode.GPU_OUT_OF_MEMORY, detail
        case StoreUnavailable() | NotStored():
            return FailureCode.STORAGE_ERROR, str(error)
        case JudgeUnavailable() | UnparsedAnswers():
            # The worker is well, and waits in vain: tried again, from the checkpoint, it may get its answer.
            return FailureCode.STAGE_TIMEOUT, str(error)
        case RewardUnavailable():
            # The process of the shared reward is lost: for the job the same as its worker's.
            return FailureCode.WORKER_LOST, str(error)
        case WeightsMissing():
            return FailureCode.WEIGHTS_MISSING, str(error)
        case _:
            log.error("an unexpected error ended a scene", exc_info=error)
            detail = f"{type(error).__name__}: {error}. The worker's log has the traceback"
            return FailureCode.INTERNAL, detail
