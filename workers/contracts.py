"""The seams of the optimisation core: what a prior, a field, a reward and a method are to each other.

Shape legend, used as suffixes all over the core:
G groups (one group = the views of one object that a prior denoises together), V views of a group,
C channels, H height, W width, P points, L text tokens, D width of a token.

A network is *asked*: `await prior.predict(...)` yields an `Ask` to the engine, which answers the same
question of many scenes with one call. So a question's arguments and its answer consist of
tensors with a leading row dimension, lists of strings (one per row), and named tuples of these.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from workers.cameras import Cameras
    from workers.shading import Look

__all__ = [
    "Ask",
    "AskKind",
    "Field",
    "Method",
    "Prediction",
    "Prior",
    "Reward",
    "Schedule",
    "Scores",
    "Surface",
    "TrainedField",
    "Views",
    "asked",
]

Answer = TypeVar("Answer")
Network = TypeVar("Network")
Arguments = ParamSpec("Arguments")

AskKind = Literal["encode", "predict", "decode", "score"]
"""What a method may ask, in the order in which it must ask within a step."""


class Ask(Generic[Answer]):
    """One question to one network: awaited by a method, answered by whoever drives the coroutine."""

    def __init__(
        self, kind: AskKind, network: object, call: Callable[..., Answer], arguments: tuple[Any, ...]
    ) -> None:
        self.kind = kind
        self.network = network
        self.call = call
        self.arguments = arguments

    def __await__(self) -> Generator[Ask[Answer], Answer, Answer]:
        return (yield self)

    def now(self) -> Answer:
        """Answer this question alone, at once (for tests, previews and single scenes)."""
        return self.call(*self.arguments)


def asked(
    kind: AskKind,
) -> Callable[
    [Callable[Concatenate[Network, Arguments], Answer]],
    Callable[Concatenate[Network, Arguments], Ask[Answer]],
]:
    """Turn a network's batched method into a question: calling it returns an `Ask` instead of running it.

    Arguments are positional, row-batched values as this module's docstring says.
    """

    def decorate(
        compute: Callable[Concatenate[Network, Arguments], Answer],
    ) -> Callable[Concatenate[Network, Arguments], Ask[Answer]]:
        @functools.wraps(compute)
        def ask(network: Network, /, *arguments: Arguments.args, **keywords: Arguments.kwargs) -> Ask[Answer]:
            assert not keywords, "a network is asked with positional arguments only"
            call = cast("Callable[..., Answer]", functools.partial(compute, network))
            return Ask(kind, network, call, arguments)

        return ask

    return decorate


class Surface(NamedTuple):
    """What a field's regularizers want to know of its render, per pixel; methods and priors have no use for it."""

    opacity: Tensor
    """(G, V, 1, H, W) accumulated alpha of the object, without the background that `Views` may have."""
    depth_variance: Tensor
    """(G, V, 1, H, W) Σ w (t − depth)² along the ray."""
    backfacing: Tensor
    """(G, V, 1, H, W) Σ sg[w] max(n · d, 0)²: how much of what is seen faces away; 0 where no normals were made."""


class Views(NamedTuple):
    """Renders of one object: all that a method sees of a field."""

    rgb: Tensor
    """(G, V, 3, H, W) in [0, 1], sRGB, premultiplied by `opacity`."""
    opacity: Tensor
    """(G, V, 1, H, W) accumulated alpha in [0, 1]."""
    depth: Tensor
    """(G, V, 1, H, W) expected distance along the ray, weighted by alpha (0 where nothing is hit)."""
    cameras: Cameras
    surface: Surface | None = None
    """Of a field that was rendered with a look; with a background behind the object, `opacity` is 1 everywhere."""


class Prediction(NamedTuple):
    """A denoiser's answer in both forms; at high t one cannot be had from the other without losing digits."""

    noise: Tensor
    """(G, V, C, H, W) predicted noise ε̂."""
    x0: Tensor
    """(G, V, C, H, W) predicted clean latents x̂₀."""


class Schedule(NamedTuple):
    """A variance-preserving diffusion schedule over discrete times t = 0 … T − 1."""

    alphas_cumprod: Tensor
    """(T,) float32, decreasing: latents_t = √ᾱ_t · latents + √(1 − ᾱ_t) · noise."""

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)


class Prior(Protocol):
    """One frozen diffusion model: no guidance, no weighting, no random draw."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def views_per_call(self) -> int:
        """V: how many views of one object are denoised together."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one view's latents."""
        ...

    @property
    def image_px(self) -> int:
        """Height and width of the renders that `encode` takes, in pixels."""
        ...

    @property
    def latent_range(self) -> tuple[float, float] | None:
        """Bounds of clean latents, to which methods clamp their targets; None where there are none."""
        ...

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Embed prompts: (len(prompts), L, D), L always the same. The empty prompt is the unconditional one."""
        ...

    def unknown_words(self, prompt: str) -> list[str]:
        """Name the words of `prompt` that the text encoder has no meaning for, in order, each once."""
        ...

    def composite(self, views: Views) -> Tensor:
        """Put the renders in front of this prior's background, as rewards see them: (G, V, 3, H, W) in [0, 1].

        Differentiable to the views; no network, so it needs no asking.
        """
        ...

    def encode(self, views: Views) -> Ask[Tensor]:
        """Encode renders to latents (G, V, C, h, w); differentiable to the views."""
        ...

    def predict(self, latents: Tensor, t: Tensor, text: Tensor, cameras: Cameras) -> Ask[Prediction]:
        """Denoise noisy latents (G, V, C, h, w) at times t (G,) int64 under text (G, L, D).

        Differentiable to the text where that requires a gradient (a method that learns an embedding), else without
        gradient.
        """
        ...

    def decode(self, latents: Tensor) -> Ask[Tensor]:
        """Decode latents to images (G, V, 3, H, W) in [0, 1]; differentiable to the latents."""
        ...


class Scores(NamedTuple):
    """A reward's answer."""

    values: Tensor
    """(G, V) one score per view, or (G, 1) one per object."""
    gradient: Tensor
    """(G, V, 3, H, W) d values.sum() / d images for rows that asked for it; zeros for the others."""


class Reward(Protocol):
    """A preference score that the engine may share: see `reward_models.contracts` for what rewards declare."""

    @property
    def name(self) -> str: ...

    def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Awaitable[Scores]:
        """Score images (G, V, 3, H, W) in [0, 1] for prompts (G): awaited by a method, it asks one network or several.

        `wants_gradient` (G,) bool names the rows to differentiate.
        """
        ...


class Field(Protocol):
    """A differentiable radiance field in the box [−1, 1]³: +Y up, the front faces +Z."""

    def density(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P,) volume density ≥ 0, per unit length."""
        ...

    def color(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P, 3) sRGB color in [0, 1], not premultiplied."""
        ...


class TrainedField(Field, Protocol):
    """A field with the schedule by which it is trained: what a scene optimizes."""

    def occupied(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P,) bool: False only where the density is zero."""
        ...

    def prepare(self, step: int, steps_total: int) -> bool:
        """Get ready for `step`; True if the parameters are new ones. Doing it twice for one step changes nothing."""
        ...

    def new_optimizer(self) -> Optimizer:
        """Make an optimizer for the present parameters."""
        ...

    def draw_look(
        self, cameras: Cameras, step: int, steps_total: int, generator: torch.Generator
    ) -> Look | None:
        """Draw how this step shows the field to cameras (G, V), from a generator on the CPU; None shows it plain."""
        ...

    def learning_rate(self, progress: float) -> float:
        """Learning rate of all parameters at `progress` in [0, 1]."""
        ...

    def regularization(self, views: Views, step: int, steps_total: int) -> Tensor:
        """A scalar loss which is added to the method's, a mean square over the elements of the latents."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that `prepare` and the parameters are made of, as tensors."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> object:
        """Become the field that was saved, whatever its sizes were."""
        ...


Method = Callable[..., Coroutine[Ask[Any], Any, "Tensor"]]
"""A coroutine function (scene, views, prior, …) → scalar loss, differentiable to the views."""
