"""The candidates of one job: scenes that differ in their seed only, step together, and of which the best are kept.

The others are stored too, since a person may overrule the reward (`service/jobs/choosing.py`). A job with one
candidate is a team of one: its checkpoint is that scene's, and its result is the same bits.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from service.jobs.spec import MAX_SEED
from workers import publish
from workers.mesh import EmptyMesh, InvalidGlb
from workers.opening import make_scene
from workers.scene import CheckpointError, load_checkpoint, save_checkpoint
from workers.steering import steering_reward

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.jobs.spec import JobSpec
    from workers.mesh import Mesh
    from workers.networks import Networks
    from workers.publish import File
    from workers.scene import Scene

__all__ = [
    "Candidate",
    "Exported",
    "Scored",
    "Team",
    "Verified",
    "documents",
    "export",
    "make_team",
    "rank",
    "verify",
]

log = logging.getLogger(__name__)

_MAGIC = b"dreamserve-candidates-1\n"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One object that a job might end with."""

    index: int
    spec: JobSpec
    """The job's, with the candidate's own seed."""
    scene: Scene


class Team:
    """The candidates of one job that are still alive; all are at the same step."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self.candidates = candidates
        self._is_single = len(candidates) == 1

    @property
    def scenes(self) -> list[Scene]:
        """The scenes, in the order of the candidates."""
        return [one.scene for one in self.candidates]

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.candidates[0].scene.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.candidates[0].scene.finished

    def lose(self, scene: Scene) -> int:
        """Go on without a candidate, which has diverged; its index."""
        (lost,) = (one for one in self.candidates if one.scene is scene)
        self.candidates.remove(lost)
        return lost.index

    def save(self) -> bytes:
        """Write a checkpoint of all scenes."""
        parts = [(one.index, save_checkpoint(one.scene)) for one in self.candidates]
        if self._is_single:
            return parts[0][1]
        header = json.dumps([[index, len(part)] for index, part in parts]).encode()
        return b"".join([_MAGIC, header, b"\n", *(part for _, part in parts)])

    def load(self, data: bytes) -> None:
        """Become the team that was saved, which may have lost candidates. Raises `CheckpointError`."""
        if self._is_single:
            self.candidates[0].scene.load_state_dict(load_checkpoint(data))
            return
        saved = _split(data)
        self.candidates = [one for one in self.candidates if one.index in saved]
        if not self.candidates:
            raise CheckpointError(
                f"the checkpoint has candidates {sorted(saved)}, none of which this job has"
            )
        for one in self.candidates:
            one.scene.load_state_dict(load_checkpoint(saved[one.index]))


def _split(data: bytes) -> dict[int, bytes]:
    header, found, rest = data.removeprefix(_MAGIC).partition(b"\n")
    try:
        if not (data.startswith(_MAGIC) and found):
            raise ValueError("no header")
        parts = {}
        for index, length in json.loads(header):
            parts[int(index)], rest = rest[:length], rest[length:]
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{len(data)} bytes are no checkpoint of several candidates ({error}); use the one before it"
        ) from error
    return parts


def make_team(spec: JobSpec, networks: Networks) -> Team:
    """Set up step 0 of all candidates: number i has the job's seed + i."""
    candidates = []
    for index in range(spec.candidates.count):
        own = spec.model_copy(update={"seed": (spec.seed + index) % (MAX_SEED + 1)}) if index else spec
        candidates.append(Candidate(index, own, make_scene(own, networks)))
    return Team(candidates)


# ---- choosing


class Scored(NamedTuple):
    """A candidate and what was said of it."""

    candidate: Candidate
    said: dict[str, Any]
    """Scores and referee, as in a result's `candidates`."""


class Exported(NamedTuple):
    """A candidate that has become an object, and what is in its mesh."""

    scored: Scored
    mesh: Mesh
    files: list[File]
    """The GLB first."""


class Verified(NamedTuple):
    """An object whose GLB is valid."""

    exported: Exported
    mesh: dict[str, Any]
    """What `verify_mesh` says."""


def rank(team: Team, networks: Networks, spec: JobSpec) -> list[Scored]:
    """Score all candidates and order them: the best by the reward that steers the job comes first."""
    scored = [Scored(one, publish.scores(one.scene, networks, one.spec)) for one in team.candidates]
    name = steering_reward(spec)

    def score(one: Scored) -> float:
        scores = one.said["scores"]
        value = scores.get(name, next(iter(scores.values()), 0.0))
        return -math.inf if math.isnan(value) else float(value)

    return sorted(scored, key=score, reverse=True)


def export(
    ranked: list[Scored], networks: Networks, spec: JobSpec, most: int, go_on: Callable[[], None]
) -> list[Exported]:
    """Export the best `most` candidates, passing over what is no object; raises `EmptyMesh` when none is one.

    `go_on` is asked before each, and raises where nobody wants them any more. The files of the best have the plain
    names, `mesh-2.glb` is the mesh of the candidate with index 2.
    """
    made: list[Exported] = []
    empty: EmptyMesh | None = None
    for one in ranked:
        go_on()
        index, own, scene = one.candidate.index, one.candidate.spec, one.candidate.scene
        try:
            origin = publish.glb_origin(own, networks)
            mesh, files = publish.export_mesh(scene, own, networks.priors[spec.prior], origin)
        except EmptyMesh as error:
            empty = error
            continue
        if made:
            files = [file._replace(name=file.name.replace(".", f"-{index}.", 1)) for file in files]
        made.append(Exported(one, mesh, [file._replace(candidate=index) for file in files]))
        if len(made) == most:
            break
    if not made:
        assert empty is not None, "a team has at least one candidate"
        raise empty
    return made


def verify(
    made: list[Exported], networks: Networks, spec: JobSpec, go_on: Callable[[], None]
) -> list[Verified]:
    """Check every written GLB; raises `InvalidGlb` for one that is to be kept, and leaves out any other.

    `go_on` is as in `export`.
    """
    verified = []
    for place, one in enumerate(made):
        go_on()
        scene, glb = one.scored.candidate.scene, one.files[0].content
        try:
            mesh = publish.verify_mesh(scene, one.mesh, glb, networks.priors[spec.prior])
        except InvalidGlb as error:
            if place < spec.candidates.keep:
                raise
            log.warning("candidate %d is not stored: %s", one.scored.candidate.index, error)
        else:
            verified.append(Verified(one, mesh))
    return verified


def documents(spec: JobSpec, ranked: list[Scored], verified: list[Verified]) -> dict[str, Any]:
    """Tell of every candidate: seed, scores, whether it is kept, files, mesh; and the mesh of the best once more."""
    said = {one.candidate.index: one.said for one in ranked}
    objects = {
        one.scored.candidate.index: {
            "kept": place < spec.candidates.keep,
            "files": [file.name for file in one.files],
            "mesh": mesh,
            "field_sha256": publish.field_sha256(one.scored.candidate.scene),
        }
        for place, (one, mesh) in enumerate(verified)
    }
    nothing = {"kept": False, "files": [], "mesh": None, "field_sha256": None}
    candidates = [
        {
            # One that nothing was said of has diverged on the way.
            **said.get(index, {"scores": {}, "referee": None}),
            "index": index,
            "seed": (spec.seed + index) % (MAX_SEED + 1),
            **objects.get(index, nothing),
        }
        for index in range(spec.candidates.count)
    ]
    kept = [index for index, told in objects.items() if told["kept"]]
    return {
        "candidates": candidates,
        "choice": {"by": "reward", "candidates": kept, "at": None},
        "mesh": verified[0].mesh,
    }
