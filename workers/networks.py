"""The networks that a worker holds, loaded once, and what it can therefore say that it can do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from service.jobs.capabilities import Capabilities, PartFacts, RewardFacts
from workers.cameras import CameraRig, orbit_cameras
from workers.judging import SharedReward
from workers.weights import EMBEDDED_PRIOR, REWARD_NAMES, load_reward

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from reward_models.actor import RemoteReward
    from reward_models.contracts import RewardCard, RewardModel
    from service.settings import Settings
    from workers.contracts import Prior, Reward, TrainedField
    from workers.priors.embedded import EmbeddedPrior

    Shading = Callable[[NDArray[np.float32]], NDArray[np.float32]]

__all__ = ["LoadedPrior", "LoadedReward", "Networks", "hold_embedded_prior", "load_networks"]


class PreviewSampler(Protocol):
    """Draw what a prior sees in a prompt, without optimizing anything."""

    def __call__(self, prompt: str, generator: torch.Generator) -> Tensor:
        """Pictures (V, 3, H, W) in [0, 1], around the object."""
        ...


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


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """A reward as the engine asks it, and its card."""

    reward: Reward
    card: RewardCard


@dataclass(frozen=True, slots=True)
class Networks:
    """Everything frozen that a worker's scenes share, by the names that jobs use."""

    priors: Mapping[str, LoadedPrior]
    rewards: Mapping[str, LoadedReward]
    shares_rewards: bool = False
    """Whether scenes of other workers may be in a reward's batches."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def capabilities(self) -> Capabilities:
        """Say what jobs these networks can run."""
        methods = ["sds", *(["dreamdpo", "psd"] if self.rewards else [])]
        if any(loaded.card.differentiable for loaded in self.rewards.values()):
            methods.append("dreamfl")
        previews = any(loaded.sample is not None for loaded in self.priors.values())
        return Capabilities(
            methods={name: PartFacts() for name in methods},
            priors={name: loaded.facts for name, loaded in self.priors.items()},
            rewards={name: _reward_facts(loaded.card) for name, loaded in self.rewards.items()},
            efforts=("preview", "draft", "full") if previews else ("draft", "full"),
            mesh_formats=("glb", "obj", "ply", "stl"),
        )


def load_networks(settings: Settings, remote_rewards: Mapping[str, RemoteReward] | None = None) -> Networks:
    """Load what this worker needs; rewards that run in shared actors come as `remote_rewards`.

    Raises FileNotFoundError or ValueError when weights are missing or damaged, saying what to do.
    """
    from workers.priors.embedded import load_embedded_prior

    priors = {"embedded": hold_embedded_prior(load_embedded_prior(EMBEDDED_PRIOR))}
    if remote_rewards is not None:
        rewards = {
            name: LoadedReward(SharedReward(name, remote.score_batch), remote.card)
            for name, remote in remote_rewards.items()
        }
    else:
        rewards = {name: _local_reward(load_reward(name)) for name in REWARD_NAMES}
    networks = Networks(priors, rewards, shares_rewards=remote_rewards is not None)
    for loaded in priors.values():
        # The first optimizer of a process makes torch import for seconds: not in the first job's time.
        loaded.make_field(networks.device).new_optimizer()
    return networks


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
        facts=PartFacts(weights=f"sha256:{prior.sha256}", about="tiny four-view RGBA diffusion, shipped"),
        rig=rig,
        make_field=lambda device: VoxelField(device=device),
        mesh_cells=128,
        shading=LinearShading(*SHADING).__call__,
        warn=warn,
        sample=sample,
    )


def _local_reward(model: RewardModel) -> LoadedReward:
    def source(
        images: Tensor, prompts: list[str], wants_gradient: Tensor, num_scenes: int
    ) -> tuple[Tensor, Tensor]:
        return model.score_batch(images, prompts, wants_gradient)

    return LoadedReward(SharedReward(model.card.name, source), model.card)


def _reward_facts(card: RewardCard) -> RewardFacts:
    return RewardFacts(
        license=card.license,
        weights=None if card.weights_sha256 is None else f"sha256:{card.weights_sha256}",
        about=card.scale,
        differentiable=card.differentiable,
        multiview=card.views is not None and card.views > 1,
        score_range=card.value_range,
        details={"uses_prompt": card.uses_prompt, "views": card.views},
    )
