"""The multimodal judge of a server: the operator says which endpoint or folder, and jobs name it like any reward.

A folder's network is held by each worker that is asked for it: on a GPU, mind its memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from reward_models.multimodal_folder import ORIGIN, faults, license_of, weight_files
from service.jobs.capabilities import AbsentFacts, RewardFacts
from workers.artifacts import commercial_use, hash_files, notes, read_notes

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from reward_models.multimodal import Answers, MultimodalJudge
    from reward_models.multimodal_formats import AnswerFormat
    from reward_models.multimodal_questions import Transport
    from service.settings import Settings

__all__ = ["JUDGE", "judge_facts", "load_judge"]

JUDGE = "multimodal"
"""By this name a job has it in `judge`, `override`, `referee` or `rewards`."""
KEY_VARIABLE = "DREAMSERVE_JUDGE_KEY"
UNKNOWN_LICENSE = "NOASSERTION"
"""What an endpoint's model may be used for, nobody tells us."""
TIMEOUT_S, GIVE_UP_S = 20.0, 35.0
"""Of one request, and of the last try: together below the minute after which an optimization counts as stalled."""
NOTES = "judge-folder.json"
"""In the data folder: the hashes of a judge's files, so that gigabytes are not read at each start."""


def judge_facts(settings: Settings) -> RewardFacts | AbsentFacts:
    """Say what is known of the judge that the settings name, without asking or loading it; or what is missing."""
    folder = settings.judge_folder
    if settings.judge_url is None and folder is None:
        return AbsentFacts(
            license=UNKNOWN_LICENSE,
            commercial_ok=False,
            missing=(
                "an OpenAI-compatible endpoint of a model that sees pictures (such as vLLM with Qwen2.5-VL)",
                "or the folder of a Qwen2.5-VL",
            ),
            how="The operator sets DREAMSERVE_JUDGE_URL and DREAMSERVE_JUDGE_MODEL, or DREAMSERVE_JUDGE_FOLDER, where "
            "the workers run.",
        )
    license_, weights = UNKNOWN_LICENSE, None
    if folder is not None:
        license_ = license_of(folder)
        if missing := faults(folder):
            return AbsentFacts(
                license=license_,
                commercial_ok=commercial_use(license_),
                missing=tuple(missing),
                how=f"Fetch a whole folder of a Qwen2.5-VL (from {ORIGIN}, for example), name it in "
                "DREAMSERVE_JUDGE_FOLDER, and restart the workers.",
            )
        weights = f"sha256:{_weights_sha256(folder, settings.data_dir)}"
    whom = (
        f"{settings.judge_model} at the operator's endpoint"
        if folder is None
        else f"{folder.name} in the worker"
    )
    return RewardFacts(
        license=license_,
        commercial_ok=commercial_use(license_),
        weights=weights,
        about=f"{whom}, asked in the form '{settings.judge_format}'",
        details={"uses_prompt": True, "views": None},
    )


def load_judge(settings: Settings, device: torch.device) -> tuple[MultimodalJudge, MultimodalJudge]:
    """Get ready to ask the endpoint, to which nothing is sent yet, or load the folder's network onto `device`.

    The first judge raises when it cannot read an answer. The second, for DreamDPO's `override`, says NaN then, which
    counts as undecided; they remember their answers together. Raises ValueError for an address that is none, and for a
    folder that is not whole, naming file and key.
    """
    from reward_models.multimodal import Answers, MultimodalJudge

    license_, sha256 = UNKNOWN_LICENSE, None
    if (folder := settings.judge_folder) is None:
        transport = _endpoint(settings)
    else:
        from reward_models.multimodal_local import LocalQwen

        transport = LocalQwen.from_folder(folder, device=device.type)
        license_, sha256 = license_of(folder), _weights_sha256(folder, settings.data_dir)
    answers = Answers(transport)
    form = _format(settings.judge_format, answers)
    strict = MultimodalJudge(JUDGE, form, answers, license=license_, weights_sha256=sha256)
    tolerant = MultimodalJudge(JUDGE, form, answers, license=license_, weights_sha256=sha256, unparsed="nan")
    return strict, tolerant


def _endpoint(settings: Settings) -> Transport:
    from reward_models.multimodal_endpoint import Endpoint, EndpointOptions

    assert settings.judge_url is not None, "a judge has an address"
    return Endpoint(
        settings.judge_url,
        settings.judge_model,
        key_variable=KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else None,
        options=EndpointOptions(timeout_s=TIMEOUT_S, give_up_s=GIVE_UP_S),
    )


def _weights_sha256(folder: Path, data_dir: Path) -> str:
    """Hash the weights of a folder: the SHA-256 of its only file, or of the lines of those of several."""
    path = data_dir / NOTES
    hashes = hash_files(folder, weight_files(folder), read_notes(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"files": notes(folder, hashes)}, indent=1))
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("\n".join(hashes.values()).encode()).hexdigest()


def _format(name: str, answers: Answers) -> AnswerFormat:
    from reward_models.multimodal import WrittenQuestions
    from reward_models.multimodal_formats import Checklist
    from reward_models.multimodal_presets import FORMATS

    return Checklist(WrittenQuestions(answers)) if name == "checklist" else FORMATS[name]
