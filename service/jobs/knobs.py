"""What a method can be told: its knobs, each with its unit, bounds, default and source.

Sources: "embedded" = measured on the embedded models (their training record), "product" = a decision of this product.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

__all__ = [
    "METHOD_NAMES",
    "AnyMethod",
    "DistillationKnobs",
    "DreamDpoMethod",
    "DreamFlMethod",
    "MethodConfig",
    "Name",
    "Part",
    "PsdMethod",
    "Ramp",
    "SdsMethod",
]

METHOD_NAMES = ("sds", "dreamfl", "dreamdpo", "psd")

Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""The name of a reward, preset or version."""


class Part(BaseModel):
    """An immutable part of a job: no unknown field, no silent conversion, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _as_ramp(value: object) -> object:
    """Read a plain number as a ramp that stays where it is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"start": value, "end": value}
    return value


def _as_method(value: object) -> object:
    """Read a method's bare name as that method with its defaults."""
    return {"name": value} if isinstance(value, str) else value


class Ramp(Part):
    """A value that changes over a job: start + (end − start) · s^power, s going from 0 at `begin` to 1 at `until`."""

    start: float
    end: float
    power: float = Field(1.0, gt=0, le=10, description="Shape of the change; 1 is a straight line.")
    begin: float = Field(0.0, ge=0, lt=1, description="Progress (0 to 1) up to which it stays at `start`.")
    until: float = Field(1.0, gt=0, le=1, description="Progress (0 to 1) from which it stays at `end`.")

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Ramp:
        if self.begin >= self.until:
            raise ValueError(f"begin is {self.begin}, but it must lie before until, which is {self.until}")
        return self

    def at(self, progress: float) -> float:
        """Evaluate at `progress` in [0, 1]."""
        return self.at_step(progress, 1)

    def at_step(self, step: float, steps_total: float) -> float:
        """Evaluate at a step: by whole steps, where progress would round (0.6/0.8 < 0.75)."""
        first, last = self.begin * steps_total, self.until * steps_total
        share = max(min(1.0, (step - first) / (last - first)), 0.0)
        return float(self.start + (self.end - self.start) * share**self.power)

    def stays_within(self, low: float, high: float) -> bool:
        """Tell whether both ends, hence all values, lie in [low, high]."""
        return low <= min(self.start, self.end) and max(self.start, self.end) <= high


class ScaleRamp(Ramp):
    """A `Ramp` between guidance scales; only for the schema, the check is `DistillationKnobs`'."""

    start: float = Field(ge=0, le=200)
    end: float = Field(ge=0, le=200)


class TimeRamp(Ramp):
    """A `Ramp` between diffusion times; only for the schema, the check is `DistillationKnobs`'."""

    start: float = Field(ge=0, le=1)
    end: float = Field(ge=0, le=1)


ScaleKnob: TypeAlias = Annotated[
    Ramp,
    BeforeValidator(_as_ramp, json_schema_input_type=Annotated[float, Field(ge=0, le=200)] | ScaleRamp),
]
TimeKnob: TypeAlias = Annotated[
    Ramp,
    BeforeValidator(_as_ramp, json_schema_input_type=Annotated[float, Field(ge=0, le=1)] | TimeRamp),
]
"""A number or a `Ramp`."""


class DistillationKnobs(Part):
    """What every method shares: how the prior is asked, and at which diffusion times t (0 clean, 1 noise)."""

    name: str
    guidance_scale: ScaleKnob = Field(
        Ramp(start=2.5, end=1.5),
        description="Classifier-free guidance scale, 0 to 200, no unit. Default 2.5 → 1.5. Source: embedded.",
    )
    t_max: TimeKnob = Field(
        Ramp(start=0.98, end=0.6, power=0.5),
        description="Largest diffusion time drawn, 0 to 1. Default .98 → .6 by √progress. Source: embedded.",
    )
    t_min: TimeKnob = Field(
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
    """Score distillation, the baseline (DreamFusion, 2209.14988; MVDream, 2308.16512)."""

    name: Literal["sds"] = "sds"
    form: Literal["reconstruction", "classic"] = Field(
        "reconstruction",
        description="`reconstruction`: towards the predicted x0; `classic`: w(t) (predicted noise − noise). "
        "Source: MVDream's code uses the first.",
    )
    weighting: Literal["variance", "uniform"] = Field(
        "variance",
        description="w(t) of the classic form: `variance`, 1 − alphas_cumprod, or `uniform`, 1. "
        "Source: DreamFusion.",
    )


class DreamFlMethod(DistillationKnobs):
    """SDS plus the gradient of a differentiable reward (DreamReward, 2403.14613)."""

    name: Literal["dreamfl"] = "dreamfl"
    reward_weight: float = Field(
        0.001,
        ge=0,
        le=1_000,
        description="λ of the forms `lambda` and `paper`, weight of the reward's gradient (no unit); 0 is plain "
        "SDS. Source: embedded (from .01 on the reward is fooled).",
    )
    form: Literal["guidance1", "guidance2", "lambda", "paper"] = Field(
        "lambda",
        description="`lambda`: SDS − λ · reward of the render; `paper`: the same with the reward of the predicted "
        "x0; `guidance1`, `guidance2`: the published code's. Source: product.",
    )


class DreamDpoMethod(DistillationKnobs):
    """Two candidates per step, ranked by a judge; towards the winner, away from the loser (2502.04370)."""

    name: Literal["dreamdpo"] = "dreamdpo"
    judge: Name | None = Field(
        None,
        description="The reward that ranks; by default `rewards`, several of them as their weighted sum.",
    )
    form: Literal["anchored", "paper", "released"] = Field(
        "anchored",
        description="`anchored`: SDS on the winner and β times the paper's preference; `paper`: its formula; "
        "`released`: the published code, which differs. Source: embedded.",
    )
    tau: float = Field(
        2.0,
        ge=0,
        le=1_000,
        description="τ, in the unit of the judge's score: below this gap the loser is ignored. The default is nats, "
        "for the embedded rewards; thousandths suit HPS, a twentieth a judge from 0 to 1. Source: embedded (the best "
        "of 0.05 to 4).",
    )
    push: float = Field(
        2.0,
        ge=0,
        le=100,
        description="β of form `anchored`, push away from the loser (no unit). Source: embedded (the best of 0 to 6).",
    )
    pair: Literal["noise", "timestep"] = Field(
        "noise",
        description="What differs within a pair: two noises at one t, or one noise at two t. Source: paper.",
    )
    per: Literal["view", "object"] = Field(
        "view",
        description="What is ranked: each view, where the judge scores views, or the object by its views' mean. "
        "Source: the published code (view).",
    )
    override: Name | None = Field(
        None,
        description="A second judge, such as a multimodal model: where it prefers one clearly, it decides; "
        "where it is undecided, the judge does. Source: paper (its large multimodal model).",
    )
    override_from: float = Field(
        0.04,
        ge=0,
        le=1,
        description="Progress (0 to 1) from which the second judge is asked. Source: the published code "
        "(step 600 of 15,000).",
    )
    override_share: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Share of the steps (0 to 1) in which it is asked. Source: the published code.",
    )


class PsdMethod(DistillationKnobs):
    """Preference score distillation, our reading of its paper, whose code is not public (2603.01594)."""

    name: Literal["psd"] = "psd"
    judge: Name | None = Field(
        None,
        description="The reward that ranks; by default `rewards`, several of them as their weighted sum.",
    )
    preference_weight: float = Field(
        1.0,
        ge=0,
        le=1_000,
        description="λ of the preference guidance (no unit); 0 is plain SDS. Source: product.",
    )
    tau: float = Field(
        0.05,
        gt=0,
        le=1_000,
        description="τ, in the judge's score: gaps far above it count fully, far below it not at all. "
        "Source: as for dreamdpo.",
    )
    negative_lr: float = Field(
        1e-3,
        ge=0,
        le=1,
        description="Adam's step of the learned negative embedding (its unit); 0 keeps it. Source: product.",
    )
    negative_beta: float = Field(
        2_000.0,
        gt=0,
        le=100_000,
        description="β of the negative embedding's preference loss (no unit). Source: Diffusion-DPO, 2311.12908.",
    )


AnyMethod: TypeAlias = SdsMethod | DreamFlMethod | DreamDpoMethod | PsdMethod
MethodConfig: TypeAlias = Annotated[
    Annotated[AnyMethod, Field(discriminator="name")],
    BeforeValidator(
        _as_method, json_schema_input_type=Literal["sds", "dreamfl", "dreamdpo", "psd"] | AnyMethod
    ),
]
"""One of the methods, told apart by `name`; a bare name means that method's defaults."""
