"""What a job is: every knob that a user can turn, with its unit, bounds, default and source.

`JobRequest` is what a client sends (all but `prompt` optional); `JobSpec` is the same with every default
filled in, and is all that a worker needs: no host, no path. Sources: "embedded" = measured on the embedded
models (their training record), "product" = a decision of this product.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic.functional_validators import AfterValidator

__all__ = [
    "METHOD_NAMES",
    "Candidates",
    "DistillationKnobs",
    "DreamDpoMethod",
    "DreamFlMethod",
    "Effort",
    "JobRequest",
    "JobSpec",
    "LicensePolicy",
    "Limits",
    "LimitsRequest",
    "Mesh",
    "MeshFormat",
    "MethodConfig",
    "Outputs",
    "PriorName",
    "Priority",
    "PsdMethod",
    "Ramp",
    "RewardUse",
    "SdsMethod",
]

METHOD_NAMES = ("sds", "dreamfl", "dreamdpo", "psd")
MAX_PROMPT = 1_000
"""Code points of a prompt. Source: product."""
MAX_SEED = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly. Source: product."""

Effort = Literal["preview", "draft", "full"]
LicensePolicy = Literal["any", "commercial_ok"]
MeshFormat = Literal["glb", "obj", "ply", "stl"]
Priority = Literal["low", "normal", "high"]
PriorName = Literal["embedded", "mvdream", "stable-diffusion-2.1"]


class _Part(BaseModel):
    """An immutable part of a job: no unknown field, no silent conversion, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _not_blank(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("the prompt is blank; say what to make")
    return prompt


def _as_ramp(value: object) -> object:
    """Read a plain number as a ramp that stays where it is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"start": value, "end": value}
    return value


def _as_method(value: object) -> object:
    """Read a method's bare name as that method with its defaults."""
    return {"name": value} if isinstance(value, str) else value


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"each may be named once, found {', '.join(map(str, values))}")
    return values


Prompt: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT), AfterValidator(_not_blank)]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""The name of a reward, preset or version."""
Seed: TypeAlias = Annotated[int, Field(ge=0, le=MAX_SEED)]
Steps: TypeAlias = Annotated[int, Field(ge=1, le=20_000)]
Metadata: TypeAlias = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16, description="Up to 16 pairs of your own, handed back with the job; never read."),
]
Webhook: TypeAlias = Annotated[str, StringConstraints(max_length=2_048, pattern=r"^https://")]


class Ramp(_Part):
    """A value that changes over a job: start + (end − start) · progress^power, progress from 0 to 1."""

    start: float
    end: float
    power: float = Field(1.0, gt=0, le=10, description="Shape of the change; 1 is a straight line.")

    def at(self, progress: float) -> float:
        """Evaluate at `progress` in [0, 1]."""
        return float(self.start + (self.end - self.start) * progress**self.power)

    def stays_within(self, low: float, high: float) -> bool:
        """Tell whether both ends, hence all values, lie in [low, high]."""
        return low <= min(self.start, self.end) and max(self.start, self.end) <= high


Knob: TypeAlias = Annotated[Ramp, BeforeValidator(_as_ramp, json_schema_input_type=float | Ramp)]
"""A number or a `Ramp`."""


class DistillationKnobs(_Part):
    """What every method shares: how the prior is asked, and at which diffusion times t (0 clean, 1 noise)."""

    name: str
    guidance_scale: Knob = Field(
        Ramp(start=5.0, end=3.0),
        description="Classifier-free guidance scale, 0 to 200, no unit. Default 5 → 3. Source: embedded.",
    )
    t_max: Knob = Field(
        Ramp(start=0.98, end=0.6, power=0.5),
        description="Largest diffusion time drawn, 0 to 1. Default .98 → .6 by √progress. Source: embedded.",
    )
    t_min: Knob = Field(
        Ramp(start=0.5, end=0.02, power=0.5),
        description="Smallest diffusion time drawn, 0 to 1. Default .5 → .02 by √progress. Source: embedded.",
    )
    rescale: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the guided x0 rescaled to the conditional x0's spread (0 to 1, no unit). "
        "Source: MVDream's code; embedded agrees.",
    )

    @model_validator(mode="after")
    def _times_are_ordered(self) -> DistillationKnobs:
        if not self.guidance_scale.stays_within(0, 200):
            raise ValueError("guidance_scale must stay between 0 and 200")
        for name, ramp in (("t_max", self.t_max), ("t_min", self.t_min)):
            if not ramp.stays_within(0, 1):
                raise ValueError(f"{name} must stay between 0 and 1")
        for tenth in range(11):
            progress = tenth / 10
            if self.t_min.at(progress) > self.t_max.at(progress):
                raise ValueError(
                    f"t_min exceeds t_max at progress {progress}; keep t_min below t_max throughout"
                )
        return self


class SdsMethod(DistillationKnobs):
    """Score distillation by x0-reconstruction, the baseline (MVDream, 2308.16512)."""

    name: Literal["sds"] = "sds"


class DreamFlMethod(DistillationKnobs):
    """SDS plus the gradient of a differentiable reward (DreamReward, 2403.14613)."""

    name: Literal["dreamfl"] = "dreamfl"
    reward_weight: float = Field(
        0.3,
        ge=0,
        le=1_000,
        description="λ, weight of the reward's gradient (no unit); 0 is plain SDS. "
        "Source: embedded (1 added color speckle).",
    )
    form: Literal["guidance1", "guidance2", "lambda"] = Field(
        "lambda",
        description="`guidance1`, `guidance2`: the published code's; `lambda`: SDS − λ · reward. Source: product.",
    )


class DreamDpoMethod(DistillationKnobs):
    """Two candidates per step, ranked by a judge; towards the winner, away from the loser (2502.04370)."""

    name: Literal["dreamdpo"] = "dreamdpo"
    judge: Name | None = Field(None, description="The reward that ranks; by default the first of `rewards`.")
    tau: float = Field(
        0.05,
        ge=0,
        le=1_000,
        description="τ, in the judge's score: below this gap the loser is ignored. Source: embedded.",
    )
    push: float = Field(
        2.0,
        ge=0,
        le=100,
        description="β, push away from the loser (no unit). Source: embedded (the best of 0 to 6).",
    )
    pair: Literal["noise", "timestep"] = Field(
        "noise",
        description="What differs within a pair: two noises at one t, or one noise at two t. Source: paper.",
    )


class PsdMethod(DistillationKnobs):
    """Preference score distillation (2603.01594). Not in this release: a job that asks for it is refused."""

    name: Literal["psd"] = "psd"
    judge: Name | None = Field(None, description="The reward that ranks; by default the first of `rewards`.")
    preference_weight: float = Field(
        1.0,
        ge=0,
        le=1_000,
        description="λ of the preference guidance (no unit); 0 is plain SDS. Source: product.",
    )


AnyMethod: TypeAlias = SdsMethod | DreamFlMethod | DreamDpoMethod | PsdMethod
MethodConfig: TypeAlias = Annotated[
    Annotated[AnyMethod, Field(discriminator="name")],
    BeforeValidator(
        _as_method, json_schema_input_type=Literal["sds", "dreamfl", "dreamdpo", "psd"] | AnyMethod
    ),
]
"""One of the methods, told apart by `name`; a bare name means that method's defaults."""


class RewardUse(_Part):
    """One reward that steers, and how much."""

    name: Name
    version: Name | None = Field(None, description="A registered version; by default the newest one.")
    weight: float = Field(1.0, gt=0, le=1_000, description="Relative weight (no unit). Source: product.")


class Candidates(_Part):
    """How many objects to make, and how many to keep."""

    count: int = Field(1, ge=1, le=16)
    keep: int = Field(1, ge=1, le=16)
    select_by: Literal["reward"] = "reward"

    @model_validator(mode="after")
    def _keeps_what_it_makes(self) -> Candidates:
        if self.keep > self.count:
            raise ValueError(f"keep is {self.keep}, but count is only {self.count}")
        return self


class Mesh(_Part):
    """The finished asset."""

    target_faces: int = Field(20_000, ge=100, le=1_000_000, description="Triangles after simplification.")
    texture_px: int = Field(
        512, ge=64, le=4_096, description="Edge of the square base-color texture, pixels."
    )
    formats: Annotated[tuple[MeshFormat, ...], Field(strict=False), AfterValidator(_each_once)] = Field(
        ("glb",), max_length=4, description="Files to write; the GLB is always among them."
    )


class Outputs(_Part):
    """What to write beside the mesh."""

    thumbnail: bool = True
    turntable: bool = False
    report: bool = True


class LimitsRequest(_Part):
    """When to give up, as asked: what is left out is filled from the operator's defaults."""

    deadline_s: float | None = Field(None, gt=0, le=604_800, description="Seconds from submission.")
    max_gpu_s: float | None = Field(None, gt=0, description="Worker seconds over all attempts.")
    max_attempts: int | None = Field(
        None, ge=1, le=20, description="Bounds the failures, not the preemptions."
    )


class Limits(_Part):
    """When to give up."""

    deadline_s: float = Field(gt=0, le=604_800)
    max_gpu_s: float | None = Field(None, gt=0)
    max_attempts: int = Field(ge=1, le=20)


class JobRequest(_Part):
    """What a client may send; `{"prompt": "…"}` alone is enough, `null` means "as if left out"."""

    prompt: Prompt = Field(description="What to make, 1 to 1,000 code points.")
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None
    seed: Seed | None = Field(None, description="Drawn at submission and kept when left out.")
    preset: Name | None = Field(None, description="A named complete spec (none in this release).")
    method: MethodConfig | None = None
    prior: PriorName | None = None
    rewards: Annotated[tuple[RewardUse, ...], Field(strict=False, max_length=8)] | None = None
    referee: Name | None = Field(None, description="A reward that never steers, scored for honesty.")
    steps: Steps | None = Field(None, description="Optimization steps; by default what `effort` says.")
    effort: Effort | None = Field(None, description="preview 0, draft 100, full 300 steps.")
    candidates: Candidates | None = None
    mesh: Mesh | None = None
    outputs: Outputs | None = None
    priority: Priority | None = None
    limits: LimitsRequest | None = None
    license_policy: LicensePolicy | None = None
    metadata: Metadata | None = None
    webhook: Webhook | None = None


class JobSpec(_Part):
    """A complete job: a `JobRequest` with every default filled in by `admission.with_defaults`."""

    prompt: Prompt
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)]
    seed: Seed
    preset: Name | None
    method: MethodConfig
    prior: PriorName
    rewards: Annotated[tuple[RewardUse, ...], Field(strict=False, max_length=8)]
    referee: Name | None
    steps: Annotated[int, Field(ge=0, le=20_000)]
    effort: Effort
    candidates: Candidates
    mesh: Mesh
    outputs: Outputs
    priority: Priority
    limits: Limits
    license_policy: LicensePolicy
    metadata: Metadata
    webhook: Webhook | None
