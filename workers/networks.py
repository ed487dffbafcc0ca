"""The networks that a worker holds, and what it can therefore say that it can do.

The shipped ones are loaded at once, published ones when the first job asks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import torch

from reward_models.typical import typical_scores
from service.jobs.capabilities import AbsentFacts, Capabilities, PartFacts, RewardFacts
from workers.artifacts import commercial_use
from workers.cameras import CameraRig, orbit_cameras
from workers.judges import JUDGE, judge_facts, load_judge
from workers.judging import SharedReward
from workers.survey import Published, survey
from workers.weights import EMBEDDED_PRIOR, REWARD_NAMES, load_reward

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from reward_models.actor import RemoteReward
    from reward_models.contracts import RewardCard, RewardModel, ViewsReward
    from service.jobs.spec import JobSpec
    from service.settings import Settings
    from workers.contracts import Prior, TrainedField
    from workers.fields.hashgrid import HashGridSizes
    from workers.priors.embedded import EmbeddedPrior
    from workers.stages import Stage

    Shading = Callable[[NDArray[np.float32]], NDArray[np.float32]]

__all__ = [
    "LoadedPrior",
    "LoadedReward",
    "Networks",
    "OnDemand",
    "ScenePlan",
    "hold_embedded_prior",
    "load_networks",
]

Network = TypeVar("Network")


class PreviewSampler(Protocol):
    """Draw what a prior sees in a prompt, without optimizing anything."""

    def __call__(self, prompt: str, generator: torch.Generator) -> Tensor:
        """Pictures (V, 3, H, W) in [0, 1], around the object."""
        ...


class ScenePlan(NamedTuple):
    """What a job on a prior is set up with beside its method."""

    field: TrainedField
    stages: Sequence[Stage]
    num_samples: int


@dataclass(frozen=True, slots=True)
class LoadedPrior:
    """A prior, and what belongs to it beside its equation."""

    prior: Prior
    facts: PartFacts
    rig: CameraRig
    make_field: Callable[[torch.device], TrainedField]
    """The radiance field that suits its pictures."""
    mesh_cells: int
    """Cells along each axis of the grid in which that field's surface is drawn."""
    shading: Shading | None
    """The light that it paints into its pictures, which a mesh's base color must not have."""
    warn: Callable[[str], dict[str, str]]
    """What of a prompt will have no effect, beside unknown words: sentences by warning code."""
    sample: PreviewSampler | None
    plan: Callable[[JobSpec], ScenePlan] | None = None
    """How its jobs are set up, where that depends on more than the prior: on presets."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """A reward as the engine asks it, and its card."""

    reward: SharedReward
    card: RewardCard
    as_override: SharedReward | None = None
    """The same as DreamDPO's second judge, where that is another: it may be undecided."""


class OnDemand(Mapping[str, Network]):
    """Networks by name, some of which are loaded when they are first asked for (which raises what loading raises)."""

    def __init__(self, loaded: Mapping[str, Network], loaders: Mapping[str, Callable[[], Network]]) -> None:
        self._loaded, self._loaders = dict(loaded), dict(loaders)

    def __getitem__(self, name: str) -> Network:
        if name not in self._loaded:
            self._loaded[name] = self._loaders[name]()
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._loaders

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._loaded, *self._loaders)))

    def __len__(self) -> int:
        return len(set(self._loaded) | set(self._loaders))


@dataclass(frozen=True, slots=True)
class Networks:
    """Everything frozen that a worker's scenes share, by the names that jobs use."""

    priors: Mapping[str, LoadedPrior]
    rewards: Mapping[str, LoadedReward]
    shares_rewards: bool = False
    """Whether scenes of other workers may be in a reward's batches."""
    published: Published = field(default_factory=Published)
    """Facts of those priors and rewards that are loaded on demand, and of those that could be had."""
    views_rewards: Mapping[str, ViewsReward] = field(default_factory=dict)
    """What scores renders with their depth: finished objects, never the pictures that steer."""

    def capabilities(self) -> Capabilities:
        """Say what jobs these networks can run; loads nothing."""
        known = self.published
        priors = {name: known.priors.get(name) or self.priors[name].facts for name in self.priors}
        rewards = {
            name: known.rewards.get(name) or _reward_facts(self.rewards[name].card) for name in self.rewards
        }
        methods = ["sds", *(["dreamdpo", "psd"] if rewards else [])]
        rewards |= {name: _reward_facts(one.card, steers=False) for name, one in self.views_rewards.items()}
        if any(facts.differentiable for facts in rewards.values()):
            methods.append("dreamfl")
        previews = any(name in known.priors or self.priors[name].sample is not None for name in priors)
        return Capabilities(
            methods={name: PartFacts() for name in methods},
            priors=priors,
            rewards=rewards,
            absent_priors=dict(known.absent_priors),
            absent_rewards=dict(known.absent_rewards),
            efforts=("preview", "draft", "full") if previews else ("draft", "full"),
            mesh_formats=("glb", "obj", "ply", "stl"),
            turntables=True,
        )

    def scoring(self, spec: JobSpec) -> dict[str, LoadedReward]:
        """Pick the rewards that score a job: those that it names, and the shipped ones on their prior.

        A preview has none. Loads what is not loaded yet.
        """
        if spec.effort == "preview":
            return {}
        named = {use.name for use in spec.rewards} | {spec.referee}
        named |= {getattr(spec.method, knob, None) for knob in ("judge", "override")}
        if spec.prior not in self.published.priors:
            named |= set(self.rewards) - set(self.published.rewards)
        return {name: self.rewards[name] for name in self.rewards if name in named}


def load_networks(
    settings: Settings,
    remote_rewards: Mapping[str, RemoteReward] | None = None,
    field_sizes: HashGridSizes | None = None,
) -> Networks:
    """Load what this worker needs; rewards that run in shared actors come as `remote_rewards`.

    `field_sizes` are those of the fields under published priors, by default the published ones.

    Raises FileNotFoundError or ValueError when shipped weights are missing or damaged, saying what to do. Published
    ones are surveyed now and loaded on demand.
    """
    from reward_models.consistency import Consistency3D
    from workers.priors.embedded import load_embedded_prior

    consistency = Consistency3D()
    embedded = hold_embedded_prior(load_embedded_prior(EMBEDDED_PRIOR))
    # The first optimizer of a process makes torch import for seconds: not in the first job's time.
    embedded.make_field(embedded.device).new_optimizer()
    shared = remote_rewards or {}
    weights, device = settings.weights_folder, _device(settings)
    own = [name for name in REWARD_NAMES if name not in shared]
    rewards = _shared_rewards(shared) | _embedded_rewards(own, weights)
    published = _with_judge(survey(weights), settings)
    return Networks(
        OnDemand(
            {"embedded": embedded},
            {
                name: functools.partial(_load_prior, name, weights, device, facts, field_sizes)
                for name, facts in published.priors.items()
            },
        ),
        OnDemand(
            rewards,
            {
                name: _reward_loader(name, settings, device, facts)
                for name, facts in published.rewards.items()
                if name not in rewards
            },
        ),
        shares_rewards=bool(shared),
        published=published,
        views_rewards={consistency.card.name: consistency},
    )


def _with_judge(published: Published, settings: Settings) -> Published:
    """Add the multimodal judge to what can be had on demand, or to what is missing."""
    facts = judge_facts(settings)
    if isinstance(facts, AbsentFacts):
        return replace(published, absent_rewards={**published.absent_rewards, JUDGE: facts})
    return replace(published, rewards={**published.rewards, JUDGE: facts})


def _reward_loader(
    name: str, settings: Settings, device: torch.device, facts: RewardFacts
) -> Callable[[], LoadedReward]:
    if name == JUDGE:
        return functools.partial(_load_judge, settings, device, facts)
    return functools.partial(_load_reward, name, settings.weights_folder, device, facts)


def _load_judge(settings: Settings, device: torch.device, facts: RewardFacts) -> LoadedReward:
    strict, tolerant = load_judge(settings, device)
    if settings.judge_folder is not None:
        _check_hash(JUDGE, strict.card.weights_sha256, facts)
    cpu = torch.device("cpu")
    return replace(_local_reward(strict, cpu), as_override=_local_reward(tolerant, cpu).reward)


def _embedded_rewards(names: Iterable[str], weights: Path) -> dict[str, LoadedReward]:
    return {name: _local_reward(load_reward(name, weights), torch.device("cpu")) for name in names}


def _shared_rewards(remote: Mapping[str, RemoteReward]) -> dict[str, LoadedReward]:
    return {
        name: LoadedReward(SharedReward(name, one.score_batch, one.card), one.card)
        for name, one in remote.items()
    }


def _device(settings: Settings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "DREAMSERVE_DEVICE=cuda, but torch finds no GPU here. Give the worker one, or set DREAMSERVE_DEVICE=auto; "
            "`dreamserve doctor` says what there is"
        )
    return torch.device(settings.device)


def _load_prior(
    name: str, weights: Path, device: torch.device, facts: PartFacts, sizes: HashGridSizes | None
) -> LoadedPrior:
    from workers.published_priors import hold_published_prior, load_prior

    prior = load_prior(name, weights, device)
    _check_hash(name, prior.sha256, facts)
    return hold_published_prior(prior, facts, sizes)


def _load_reward(name: str, weights: Path, device: torch.device, facts: RewardFacts) -> LoadedReward:
    model = load_reward(name, weights)
    _check_hash(name, model.card.weights_sha256, facts)
    if isinstance(model, torch.nn.Module):
        model.to(device)
    return _local_reward(model, device)


def _check_hash(name: str, found: str | None, facts: PartFacts) -> None:
    if facts.weights != f"sha256:{found}":
        raise ValueError(
            f"the weights of '{name}' have changed since this worker looked at them: found sha256:{found}, expected "
            f"{facts.weights}. Restart the workers, or import the published files again"
        )


def hold_embedded_prior(prior: EmbeddedPrior) -> LoadedPrior:
    """Add to an embedded prior, of whatever weights, what belongs to it."""
    from workers.embedded.raycast import SHADING
    from workers.fields.voxel import VoxelField
    from workers.mesh import LinearShading
    from workers.priors.embedded import MAX_THINGS, MAX_WORDS, sample_views

    rig = CameraRig()

    def warn(prompt: str) -> dict[str, str]:
        warnings = {}
        if prior.is_truncated(prompt):
            warnings["prompt-truncated"] = (
                f"only the first {MAX_WORDS} words are read; the rest has no effect"
            )
        if (things := prior.num_things(prompt)) > MAX_THINGS:
            warnings["too-many-things"] = (
                f"the prompt names {things} things, but the tiny embedded prior draws at most {MAX_THINGS}; "
                "make the others in jobs of their own"
            )
        return warnings

    def sample(prompt: str, generator: torch.Generator) -> Tensor:
        cameras = orbit_cameras(torch.arange(4)[None] * 90.0, torch.tensor(20.0), rig.distance, rig.fov_y_deg)
        latents = sample_views(prior, prior.encode_text([prompt]), cameras, generator)
        return prior.decode(latents).now()[0]

    return LoadedPrior(
        prior=prior,
        facts=PartFacts(
            weights=f"sha256:{prior.sha256}",
            about="tiny four-view RGBA diffusion, shipped",
            views=prior.views_per_call,
        ),
        rig=rig,
        make_field=lambda device: VoxelField(device=device),
        mesh_cells=128,
        shading=LinearShading(*SHADING).__call__,
        warn=warn,
        sample=sample,
    )


def _local_reward(model: RewardModel, device: torch.device) -> LoadedReward:
    def source(
        images: Tensor, prompts: list[str], wants_gradient: Tensor, num_scenes: int
    ) -> tuple[Tensor, Tensor]:
        values, gradient = model.score_batch(images.to(device), prompts, wants_gradient)
        return values.to(images.device), gradient.to(images.device)

    return LoadedReward(SharedReward(model.card.name, source, model.card), model.card)


def _reward_facts(card: RewardCard, *, steers: bool = True) -> RewardFacts:
    return RewardFacts(
        license=card.license,
        commercial_ok=commercial_use(card.license),
        weights=None if card.weights_sha256 is None else f"sha256:{card.weights_sha256}",
        about=card.scale,
        differentiable=card.differentiable,
        multiview=card.views is not None and card.views > 1,
        views=card.views,
        score_range=card.value_range,
        typical=None if card.retrained else typical_scores(card.name),
        steers=steers,
        details={"uses_prompt": card.uses_prompt, "views": card.views},
    )
