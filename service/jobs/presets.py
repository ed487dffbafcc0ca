"""Presets: named complete jobs, each one a published experiment with the source of its every number.

This is what a request sees of a preset: prior, method and knobs, rewards, steps, negative prompt. What a preset means
for the field (light, penalties, size of the renders) is said by `workers/presets.py` to those who have a field. The
gate to the queue must fill a preset in without torch, so this half lies in `service`.

Sources, named in brackets: [shading] `configs/mvdream-sd21-shading.yaml` of MVDream-threestudio, the configuration of
MVDream's paper (arXiv 2308.16512); [dreamreward1], [dreamreward2] the configurations of liuff19/DreamReward (arXiv
2403.14613) with its scripts `scorer1.sh`, `scorer2.sh`; [dreamdpo] arXiv 2502.04370 and, where it is silent,
`configs/dreamdpo/mvdream-sd21-reward.yaml` of ZhenglinZhou/DreamDPO; [psd] arXiv 2603.01594, whose code and numbers
are not public; [ours] our choice. Published steps are counted, ours are shares of a job's own: 8000 of 10,000 is .8.
"""

from __future__ import annotations

from service.jobs.knobs import (
    AnyMethod,
    DreamDpoMethod,
    DreamFlMethod,
    Name,
    Part,
    PsdMethod,
    Ramp,
    SdsMethod,
)
from service.jobs.spec import JobSpec, PriorName, RewardUse

__all__ = ["NEGATIVE_PROMPT", "PRESETS", "Preset", "preset_changes"]

NEGATIVE_PROMPT = (
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
    "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
    "bad proportions"
)
"""[shading], and word for word in all configurations named above."""
ANNEALED_STEPS = 8_000
"""The step at which the window of diffusion times stands still: `min_step_percent`, `max_step_percent` of all."""


class Preset(Part):
    """What a preset fills into a request where that leaves a field out."""

    name: Name
    about: str
    prior: PriorName
    method: AnyMethod
    rewards: tuple[RewardUse, ...]
    steps: int
    negative_prompt: str = NEGATIVE_PROMPT


def preset_changes(spec: JobSpec) -> tuple[str, ...]:
    """Name the fields in which a job differs from the preset that it names: none means exactly as published."""
    preset = PRESETS[spec.preset] if spec.preset else None
    if preset is None:
        return ()
    ours, theirs = spec.method.model_dump(exclude={"judge"}), preset.method.model_dump(exclude={"judge"})
    changed = [
        name for name in ("prior", "steps", "negative_prompt") if getattr(spec, name) != getattr(preset, name)
    ]
    if spec.method.name != preset.method.name:
        changed.append("method")
    else:
        changed += [f"method.{knob}" for knob, value in ours.items() if value != theirs[knob]]
    judge = getattr(spec.method, "judge", None)
    if spec.rewards != preset.rewards:
        changed.append("rewards")
    elif judge is not None and judge != preset.rewards[0].name:
        changed.append("method.judge")
    return tuple(changed)


def _constant(value: float) -> Ramp:
    return Ramp(start=value, end=value)


def _falling(end: float, steps: int) -> Ramp:
    """A bound of the diffusion times: from .98 down to `end` at step 8000. [shading], the same in all the others."""
    return Ramp(start=0.98, end=end, until=ANNEALED_STEPS / steps)


def mvdream_paper() -> Preset:
    """MVDream's own distillation: the baseline of all the others."""
    steps = 10_000  # [shading] max_steps
    return Preset(
        name="mvdream-paper",
        about="MVDream, arXiv 2308.16512: x0-reconstruction, shaded; no reward",
        prior="mvdream",
        method=SdsMethod(
            form="reconstruction",  # [shading] recon_loss
            guidance_scale=_constant(50.0),  # [shading] guidance_scale
            rescale=0.5,  # [shading] recon_std_rescale; the paper says 0.7, whose floaters its README regrets
            t_min=_falling(0.02, steps),
            t_max=_falling(0.50, steps),
        ),
        rewards=(),
        steps=steps,
    )


def _dreamreward(name: str, form: DreamFlMethod, steps: int, kind: str) -> Preset:
    return Preset(
        name=name,
        about=f"DreamReward, arXiv 2403.14613: DreamFL as released, {kind}, with the paper's Reward3D",
        prior="mvdream",
        method=form,
        rewards=(RewardUse(name="reward3d", weight=1.0),),  # [dreamreward1], [dreamreward2] alg_type
        steps=steps,
    )


def dreamreward_guidance1() -> Preset:
    """DreamFL's conservative guidance."""
    steps = 10_000  # [dreamreward1] max_steps
    method = DreamFlMethod(
        form="guidance1",  # [dreamreward1] guidance_type; its own numbers are in workers/methods/dreamfl.py
        guidance_scale=_constant(50.0),  # [dreamreward1] guidance_scale
        rescale=0.5,  # [dreamreward1] recon_std_rescale
        t_min=_falling(0.02, steps),
        t_max=_falling(0.50, steps),
    )
    return _dreamreward("dreamreward-guidance1", method, steps, "conservative (guidance1)")


def dreamreward_guidance2() -> Preset:
    """DreamFL's aggressive guidance."""
    steps = 10_400  # [dreamreward2] max_steps
    method = DreamFlMethod(
        form="guidance2",  # [dreamreward2] guidance_type
        guidance_scale=_constant(50.0),  # [dreamreward2] guidance_scale
        rescale=0.5,  # [dreamreward2] recon_std_rescale
        t_min=_falling(0.02, steps),
        t_max=_falling(0.50, steps),
    )
    return _dreamreward("dreamreward-guidance2", method, steps, "aggressive (guidance2)")


def dreamdpo_paper() -> Preset:
    """DreamDPO by its formula: the default of published priors."""
    steps = 10_000  # [dreamdpo] max_steps
    return Preset(
        name="dreamdpo-paper",
        about="DreamDPO, arXiv 2502.04370: the paper's formula, HPS v2.1 ranks each view",
        prior="mvdream",
        method=DreamDpoMethod(
            form="paper",  # [ours] the released code differs from the paper below τ (workers/methods/dreamdpo.py)
            guidance_scale=_constant(7.5),  # [dreamdpo] guidance_scale
            rescale=0.0,  # [dreamdpo] its code reads recon_std_rescale but does not use it
            tau=0.001,  # [dreamdpo] the paper's τ, for HPS
            pair="noise",  # [dreamdpo] two noises at one time
            per="view",  # [dreamdpo] its code
            t_min=_falling(0.02, steps),
            t_max=_falling(0.50, steps),
        ),
        rewards=(RewardUse(name="hpsv2.1", weight=1.0),),  # [dreamdpo] hpsv2-score, v2.1 by its README
        steps=steps,
    )


def psd_paper() -> Preset:
    """PSD on MVDream: our reading of the paper."""
    steps = 10_000  # [ours] as MVDream's, which the paper builds on
    return Preset(
        name="psd-paper",
        about="PSD, arXiv 2603.01594: our reading (its code is not public), on MVDream, HPS v2.1 ranks",
        prior="mvdream",
        method=PsdMethod(
            guidance_scale=_constant(50.0),  # [shading]: [psd] adds its term to the distillation as it stands
            rescale=0.5,  # [shading]
            preference_weight=1.0,  # [ours]
            tau=0.001,  # [dreamdpo]: HPS scores of a pair differ by thousandths
            negative_lr=1e-3,  # [ours]
            negative_beta=2_000.0,  # Diffusion-DPO, arXiv 2311.12908
            t_min=_falling(0.02, steps),
            t_max=_falling(0.50, steps),
        ),
        rewards=(RewardUse(name="hpsv2.1", weight=1.0),),  # [psd]
        steps=steps,
    )


PRESETS = {
    preset.name: preset
    for preset in (
        mvdream_paper(),
        dreamreward_guidance1(),
        dreamreward_guidance2(),
        dreamdpo_paper(),
        psd_paper(),
    )
}
