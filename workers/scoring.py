"""What the steering reward and the referee say of a scene at its checkpoints: the series that show reward hacking."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from service.jobs.series import ScorePoint
from workers import publish
from workers.steering import steering_reward

if TYPE_CHECKING:
    from service.jobs.spec import JobSpec
    from workers.attempt import Attempt
    from workers.networks import Networks
    from workers.scene import Scene

__all__ = ["score_checkpoint", "score_point"]

log = logging.getLogger(__name__)

SCORING_SHARE = 0.02
"""The most of an optimization's time that its checkpoints' scores may cost; a checkpoint in 5 s costs .7 % on the
embedded models, so all are scored."""


def score_checkpoint(attempt: Attempt, scene: Scene, networks: Networks) -> None:
    """Score a scene as it is now, from the views by which its result will be scored, and let it be told.

    Touches nothing that the scene's future depends on, and is passed over where it would cost too much of the time.
    Never raises: a job goes on without its series, with a warning.
    """
    spec, started = attempt.lease.spec, time.monotonic()
    is_first = attempt.no_scores_before is None
    if not networks.rewards or (attempt.no_scores_before or 0.0) > started:
        return
    try:
        point = score_point(scene.step, publish.scores(scene, networks, spec, finished=False), spec)
    except Exception as error:
        log.warning("checkpoint %d of %s has no scores: %s", scene.step, attempt.lease.job_id, error)
        # Not tried again: a shared reward that is gone would hold up the optimization at each checkpoint.
        attempt.no_scores_before = math.inf
        detail = f"from step {scene.step} on this attempt's checkpoints are not scored: {error}"
        attempt.untold_warnings.append({"code": "scores-missing", "detail": detail})
        return
    attempt.untold_scores.append(point)
    now = time.monotonic()
    # The first one may have loaded a referee: it says nothing about the next.
    attempt.no_scores_before = now if is_first else now + (now - started) / SCORING_SHARE


def score_point(step: int, candidate: dict[str, Any], spec: JobSpec) -> ScorePoint:
    """Pick the two scores out of what `publish.scores` says; raises ValueError when one is no finite number."""
    name, referee = steering_reward(spec), candidate["referee"]
    point = ScorePoint(
        step,
        reward=(name, candidate["scores"][name]) if name and name in candidate["scores"] else None,
        referee=None if referee is None else (referee["name"], referee["score"]),
    )
    for named in (point.reward, point.referee):
        if named is not None and not math.isfinite(named[1]):
            raise ValueError(f"reward '{named[0]}' answered {named[1]}, expected a finite number")
    return point
