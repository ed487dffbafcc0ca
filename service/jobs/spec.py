"""What a job is: all that a user can ask for, with unit, bounds, default and source (a method's knobs: `knobs.py`).

`JobRequest` is what a client sends (all but `prompt` optional); `JobSpec` is the same with every default
filled in, and is all that a worker needs: no host, no path. Sources: "embedded" = measured on the embedded
models (their training record), "product" = a decision of this product.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.functional_validators import AfterValidator

from service.jobs.knobs import (
    METHOD_NAMES,
    AnyMethod,
    DistillationKnobs,
    DreamDpoMethod,
    DreamFlMethod,
    MethodConfig,
    Name,
    Part,
    PsdMethod,
    Ramp,
    SdsMethod,
)
from service.jobs.webhook_targets import MAX_URL, URL_PATTERN

__all__ = [
    "MAX_EMBEDDED_STEPS",
    "MAX_SEED",
    "METHOD_NAMES",
    "TEXT",
    "AnyMethod",
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
    "Prompt",
    "PsdMethod",
    "Ramp",
    "RewardUse",
    "SdsMethod",
]

MAX_PROMPT = 1_000
"""Code points of a prompt. Source: product."""
MAX_SEED = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly. Source: product."""
MAX_STEPS, MAX_EMBEDDED_STEPS = 100_000, 20_000
"""Of published priors, and of the embedded one. Source: product."""

Effort = Literal["preview", "draft", "full"]
LicensePolicy = Literal["any", "commercial_ok"]
MeshFormat = Literal["glb", "obj", "ply", "stl"]
Priority = Literal["low", "normal", "high"]
PriorName = Literal["embedded", "mvdream", "stable-diffusion-2.1"]


def _not_blank(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("the prompt is blank; say what to make")
    return prompt


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"each may be named once, found {', '.join(map(str, values))}")
    return values


_SPACE: Final = r"\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What `str.strip` takes for space, for a character class."""
TEXT: Final[dict[str, Any]] = {"pattern": r"^[^\u0000]*$"}
_PROMPT: Final[dict[str, Any]] = {"pattern": rf"^[^\u0000]*[^\u0000{_SPACE}][^\u0000]*$"}
"""For the schema: what admission and `_not_blank` refuse with a better sentence."""

Prompt: TypeAlias = Annotated[
    str,
    Field(min_length=1, max_length=MAX_PROMPT, json_schema_extra=_PROMPT),
    AfterValidator(_not_blank),
]
NegativePrompt: TypeAlias = Annotated[str, Field(max_length=MAX_PROMPT, json_schema_extra=TEXT)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=MAX_SEED)]
Steps: TypeAlias = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Metadata: TypeAlias = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")],
        Annotated[str, Field(max_length=512, json_schema_extra=TEXT)],
    ],
    Field(
        max_length=16,
        description="Up to 16 pairs of your own, handed back with the job; never read.",
        json_schema_extra={"additionalProperties": False},
    ),
]
Webhook: TypeAlias = Annotated[
    str,
    # What else a URL must be depends on the operator's settings, see `webhook_targets.py`.
    StringConstraints(max_length=MAX_URL, pattern=r"^https?://"),
    Field(
        description="An https URL that is told the job's end, signed (see /v1/webhooks/default).",
        json_schema_extra={"pattern": URL_PATTERN},
    ),
]


class RewardUse(Part):
    """One reward that steers, and how much."""

    name: Name
    version: Name | None = Field(None, description="A registered version; by default the newest one.")
    weight: float = Field(
        1.0,
        gt=0,
        le=1_000,
        description="Weight in the sum of several, each less its typical score and over its typical spread (no unit). "
        "Source: product.",
    )


MAX_CANDIDATES = 16
"""Of one job. Source: product."""
_KEEPS_WHAT_IT_MAKES: Final[dict[str, Any]] = {
    "anyOf": [
        {"properties": {"keep": {"maximum": 1}}},
        *(
            {"properties": {"keep": {"maximum": some}, "count": {"minimum": some}}, "required": ["count"]}
            for some in range(2, MAX_CANDIDATES + 1)
        ),
    ]
}
"""For the schema, which cannot compare two fields."""


class Candidates(Part):
    """How many objects to make, and how many to keep."""

    model_config = ConfigDict(json_schema_extra=_KEEPS_WHAT_IT_MAKES)

    count: int = Field(1, ge=1, le=MAX_CANDIDATES)
    keep: int = Field(1, ge=1, le=MAX_CANDIDATES)
    select_by: Literal["reward"] = "reward"

    @model_validator(mode="after")
    def _keeps_what_it_makes(self) -> Candidates:
        if self.keep > self.count:
            raise ValueError(f"keep is {self.keep}, but count is only {self.count}")
        return self


class Mesh(Part):
    """The finished asset."""

    target_faces: int = Field(20_000, ge=100, le=1_000_000, description="Triangles after simplification.")
    texture_px: int = Field(
        512, ge=64, le=4_096, description="Edge of the square base-color texture, pixels."
    )
    formats: Annotated[tuple[MeshFormat, ...], Field(strict=False), AfterValidator(_each_once)] = Field(
        ("glb",),
        max_length=4,
        description="Files to write; the GLB is always among them.",
        json_schema_extra={"uniqueItems": True},
    )


class Outputs(Part):
    """What to write beside the mesh."""

    thumbnail: bool = True
    turntable: bool = Field(
        False, description="An animated WebP of it turning once around, 256 × 256 pixels."
    )
    report: bool = True


class LimitsRequest(Part):
    """When to give up, as asked: what is left out is filled from the operator's defaults."""

    deadline_s: float | None = Field(None, gt=0, le=604_800, description="Seconds from submission.")
    max_gpu_s: float | None = Field(None, gt=0, description="Worker seconds over all attempts.")
    max_attempts: int | None = Field(
        None, ge=1, le=20, description="Bounds the failures, not the preemptions."
    )


class Limits(Part):
    """When to give up."""

    deadline_s: float = Field(gt=0, le=604_800)
    max_gpu_s: float | None = Field(None, gt=0)
    max_attempts: int = Field(ge=1, le=20)


class JobRequest(Part):
    """What a client may send; `{"prompt": "…"}` alone is enough, `null` means "as if left out"."""

    prompt: Prompt = Field(description="What to make, 1 to 1,000 code points.")
    negative_prompt: NegativePrompt | None = None
    seed: Seed | None = Field(None, description="Drawn at submission and kept when left out.")
    preset: Name | None = Field(
        None,
        description="A published experiment (`mvdream-paper`, `dreamdpo-paper`, …) that fills in what is left out; "
        "GET /v1/methods lists them.",
    )
    method: MethodConfig | None = None
    prior: PriorName | None = None
    rewards: Annotated[tuple[RewardUse, ...], Field(strict=False, max_length=8)] | None = None
    referee: Name | None = Field(None, description="A reward that never steers, scored for honesty.")
    steps: Steps | None = Field(
        None,
        description="Optimization steps, 20,000 at most on the embedded prior; by default what `effort` says.",
    )
    effort: Effort | None = Field(
        None, description="preview 0, draft 100, full 300 steps; with a preset draft 2,000, full its own."
    )
    candidates: Candidates | None = None
    mesh: Mesh | None = None
    outputs: Outputs | None = None
    priority: Priority | None = None
    limits: LimitsRequest | None = None
    license_policy: LicensePolicy | None = None
    metadata: Metadata | None = None
    webhook: Webhook | None = None


class JobSpec(Part):
    """A complete job: a `JobRequest` with every default filled in by `admission.with_defaults`."""

    prompt: Prompt
    negative_prompt: NegativePrompt
    seed: Seed
    preset: Name | None
    method: MethodConfig
    prior: PriorName
    rewards: Annotated[tuple[RewardUse, ...], Field(strict=False, max_length=8)]
    referee: Name | None
    steps: Annotated[int, Field(ge=0, le=MAX_STEPS)]
    effort: Effort
    candidates: Candidates
    mesh: Mesh
    outputs: Outputs
    priority: Priority
    limits: Limits
    license_policy: LicensePolicy
    metadata: Metadata
    webhook: Webhook | None
