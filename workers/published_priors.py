"""The published priors as a worker holds them: loaded of the weights folder, with cameras, field and previews."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch

from workers.artifacts import ARTIFACTS
from workers.cameras import Cameras, VariedRig, orbit_cameras
from workers.diffusion import draw_noise
from workers.fields.hashgrid import HashGridField, HashGridSizes
from workers.networks import LoadedPrior, ScenePlan
from workers.presets import NUM_SAMPLES, plan_stages, plan_training

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from reward_models.tokens import ClipTokens
    from service.jobs.capabilities import PartFacts
    from service.jobs.spec import JobSpec
    from workers.networks import PreviewSampler
    from workers.priors.mvdream import MVDreamPrior
    from workers.priors.stable_diffusion import StableDiffusionPrior

__all__ = ["PublishedPrior", "hold_published_prior", "load_prior"]

PublishedPrior: TypeAlias = "MVDreamPrior | StableDiffusionPrior"

BYTE_TOKENS = 2 * 256 + 2
"""Tokens of CLIP's vocabulary that are no merge: each byte, alone and at a word's end; start and end of a text."""
PUBLISHED_TOKENS = 49_408
MIN_CELLS, MAX_CELLS = 32, 256
"""Cells along an axis of the grid in which a surface is drawn: as many as a picture has pixels, within these."""
PREVIEW_ELEVATION_DEG = 15.0
PREVIEW_STEPS, PREVIEW_GUIDANCE = 50, 7.5
"""How Stable Diffusion draws what it sees; MVDream's are its script's. Source: diffusers' defaults for it."""


def load_prior(name: str, weights: Path, device: torch.device | str = "cpu") -> PublishedPrior:
    """Load a published prior of the weights folder, whole or not at all.

    Raises ValueError, naming file and tensor, when anything is missing, unexpected, misshapen, damaged, not finite,
    or not what was there when it was surveyed; FileNotFoundError when CLIP's vocabulary is not installed.
    """
    path = ARTIFACTS[name].path(weights)
    match name:
        case "mvdream":
            from workers.priors.mvdream_checkpoint import load_mvdream

            return load_mvdream(path, _tokens(path), device=device)
        case "stable-diffusion-2.1":
            from workers.priors.stable_diffusion import load_stable_diffusion

            return load_stable_diffusion(path, _tokens(path), device=device)
        case _:
            raise ValueError(f"there is no published prior '{name}'")


def _tokens(path: Path) -> ClipTokens:
    """Make CLIP's tokenizer, with as many merges as the text encoder has tokens: a tiny one has fewer."""
    from reward_models.tokens import ClipTokens, clip_merges
    from workers.priors.weight_files import read_json

    size = PUBLISHED_TOKENS
    if path.is_dir():
        size = read_json(path / "text_encoder" / "config.json").get("vocab_size", size)
    elif (sidecar := path.with_suffix(".json")).is_file():
        text = read_json(sidecar).get("text")
        size = text.get("vocab_size", size) if isinstance(text, dict) else size
    num_merges = size - BYTE_TOKENS
    return ClipTokens(clip_merges()[:num_merges] if num_merges > 0 else [])


def hold_published_prior(
    prior: PublishedPrior, facts: PartFacts, sizes: HashGridSizes | None = None
) -> LoadedPrior:
    """Add to a published prior what belongs to it; `sizes` are those of its field, by default the published ones."""
    device = prior.device

    def plan(spec: JobSpec) -> ScenePlan:
        training = plan_training(spec, prior)
        field = HashGridField(sizes, training, device=device, seed=spec.seed)
        return ScenePlan(field, plan_stages(spec, prior), NUM_SAMPLES)

    def warn(prompt: str) -> dict[str, str]:
        room = prior.tokens.length
        longest = f"{prompt}, overhead view" if prior.views_per_call == 1 else prompt
        if not prior.is_truncated(longest):
            return {}
        detail = f"only the first {room - 2} tokens of the prompt are read (with start and end {room})"
        return {"prompt-truncated": f"{detail}; the rest has no effect"}

    rig = VariedRig(num_views=prior.views_per_call)
    return LoadedPrior(
        prior=prior,
        facts=facts,
        rig=rig,
        make_field=lambda device: HashGridField(sizes, device=device),
        mesh_cells=max(MIN_CELLS, min(MAX_CELLS, prior.image_px)),
        shading=None,
        warn=warn,
        sample=_sampler(prior, rig),
        plan=plan,
        device=device,
    )


def _sampler(prior: PublishedPrior, rig: VariedRig) -> PreviewSampler:
    """Let a prior draw four views of a prompt: MVDream together, Stable Diffusion one by one."""

    def sample(prompt: str, generator: torch.Generator) -> Tensor:
        azimuth_deg, elevation_deg = torch.arange(4) * 90.0, torch.tensor(PREVIEW_ELEVATION_DEG)
        ring = orbit_cameras(azimuth_deg, elevation_deg, rig.distance, rig.fov_y_deg)
        groups = 4 // prior.views_per_call
        cameras = Cameras(*(x.unflatten(0, (groups, -1)).to(prior.device) for x in ring))
        draw = _draw_together if groups == 1 else _draw_alone
        pictures: Tensor = prior.decode(draw(prior, prompt, cameras, generator)).now()
        return pictures.flatten(0, 1)

    return sample


def _draw_together(
    prior: PublishedPrior, prompt: str, cameras: Cameras, generator: torch.Generator
) -> Tensor:
    from workers.priors.mvdream import MVDreamPrior, sample_views

    assert isinstance(prior, MVDreamPrior), "a prior of several views is MVDream"
    return sample_views(prior, prompt, cameras, generator)


def _draw_alone(prior: PublishedPrior, prompt: str, cameras: Cameras, generator: torch.Generator) -> Tensor:
    from workers.priors.ddim import ddim_sample

    count = len(cameras.c2w)
    text = prior.encode_text([prompt, ""]).repeat_interleave(count, 0)
    both = Cameras(*(x.repeat(2, *[1] * (x.ndim - 1)) for x in cameras))

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        noise = prior.predict(x.repeat(2, 1, 1, 1, 1), t.repeat(2), text, both).now().noise
        with_prompt, without = noise.chunk(2)
        return with_prompt, without

    start = draw_noise(torch.empty((count, 1, *prior.latent_shape), device=prior.device), generator)
    return ddim_sample(denoise, start, prior.schedule, steps=PREVIEW_STEPS, guidance_scale=PREVIEW_GUIDANCE)
