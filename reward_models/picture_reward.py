"""What all published rewards share: pictures and prompts in, prepared as each was trained, scores out."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from reward_models.contracts import RewardCard, ViewPrompt, check_pixels, score_and_gradient
from reward_models.preprocess import picture_tensor, prepare_images, prepare_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from reward_models.tokens import PromptTokens

__all__ = ["PictureReward", "Reduction", "Texts", "reduce_views"]

Reduction = Literal["mean", "max", "min", "first"]


class Texts(NamedTuple):
    """The different texts of a batch, tokenized once, and which view is scored against which."""

    ids: Tensor
    """(T, L) int64."""
    mask: Tensor
    """(T, L): 1 for a token, 0 for padding."""
    of_view: Tensor
    """(G, V) int64: rows of `ids`."""


class PictureReward(nn.Module):
    """A reward on a frozen published network: see `RewardModel`; subclasses say how prepared pictures score."""

    picture_path: ClassVar[Literal["8-bit", "tensor"]] = "8-bit"
    """How it resizes saved pictures, see `preprocess`; images of a scene always take the tensor path."""

    def __init__(self, image_px: int, tokens: PromptTokens | None, *, antialias: bool = True) -> None:
        super().__init__()
        self.image_px = image_px
        self.tokens = tokens
        self.antialias = antialias
        self.sha256: str | None = None

    @property
    @abstractmethod
    def card(self) -> RewardCard:
        """Declare what this reward is."""

    @abstractmethod
    def score_prepared(self, pixels: Tensor, texts: Texts) -> Tensor:
        """Score pixels (G, V, 3, P, P), normalized as `preprocess` does: (G, V) or (G, 1)."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images (G, V, 3, H, W) in [0, 1] for prompts (G): (G, V) or (G, 1); differentiable to the images.

        A prompt may be a `ViewPrompt`. Raises ValueError for a wrong number of views, and for images that are not
        finite or not in [0, 1].
        """
        check_images(self.card, images)
        pixels = prepare_images(images.flatten(0, 1), self.image_px, antialias=self.antialias)
        return self._scored(pixels.unflatten(0, images.shape[:2]), prompts).to(images.device)

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Answer as `RewardModel.score_batch` says: values of `score`, and their gradient."""
        return score_and_gradient(self.score, images, prompts, wants_gradient)

    @torch.no_grad()
    def score_pictures(self, pictures: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> Tensor:
        """Score saved pictures, those of each object together, exactly as the published code prepares files."""
        if self.picture_path == "tensor":
            prepared = [
                [prepare_images(picture_tensor(one)[None], self.image_px)[0] for one in views]
                for views in pictures
            ]
        else:
            prepared = [[prepare_picture(one, self.image_px) for one in views] for views in pictures]
        if len({len(views) for views in prepared}) != 1:
            counts = ", ".join(str(len(views)) for views in prepared)
            raise ValueError(
                f"reward {self.card.name!r} wants as many pictures of each object, but got {counts}"
            )
        pixels = torch.stack([torch.stack(views) for views in prepared])
        check_views(self.card, pixels.shape[1])
        return self._scored(pixels, prompts)

    def read(self, prompts: Sequence[str], num_views: int) -> Texts:
        """Tokenize each different text of prompts (G) once; a `ViewPrompt` gives each view its own."""
        rows: dict[str, int] = {}
        of_view = [
            [rows.setdefault(text, len(rows)) for text in _view_texts(prompt, num_views, self.card)]
            for prompt in prompts
        ]
        if self.tokens is None:
            assert not self.card.uses_prompt, "a reward that reads prompts was built without its tokenizer"
            ids = mask = torch.zeros(len(rows), 0, dtype=torch.int64)
        else:
            ids, mask = self.tokens(list(rows))
        index = torch.tensor(of_view, dtype=torch.int64).reshape(len(prompts), num_views)
        return Texts(*(tensor.to(self._weight.device) for tensor in (ids, mask, index)))

    def _scored(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        weight = self._weight
        pixels = pixels.to(weight.device, weight.dtype)
        values = self.score_prepared(pixels, self.read(prompts, pixels.shape[1]))
        return values.to(torch.promote_types(values.dtype, torch.float32))  # a half-precision network's too

    @property
    def _weight(self) -> Tensor:
        """Any weight: it tells the device and the number format of all."""
        return next(self.parameters())


def reduce_views(values: Tensor, how: Reduction) -> Tensor:
    """Make one score (G, 1) of those of an object's views (G, V)."""
    match how:
        case "mean":
            return values.mean(1, keepdim=True)
        case "max":
            return values.amax(1, keepdim=True)
        case "min":
            return values.amin(1, keepdim=True)
        case "first":
            return values[:, :1]


def check_images(card: RewardCard, images: Tensor) -> None:
    """Raise ValueError, saying what was found, unless images (G, V, 3, H, W) can be scored: see `check_pixels`."""
    check_pixels(card, images)
    check_views(card, images.shape[1])


def check_views(card: RewardCard, num_views: int) -> None:
    """Raise ValueError unless the reward takes that many views of an object."""
    if card.views is not None and num_views != card.views:
        raise ValueError(
            f"reward {card.name!r} wants {card.views} views of each object, evenly spaced around it, "
            f"but got {num_views}"
        )


def _view_texts(prompt: str, num_views: int, card: RewardCard) -> Sequence[str]:
    if not (isinstance(prompt, ViewPrompt) and card.prompt_per_view):
        return [str(prompt)] * num_views
    if len(prompt.views) != num_views:
        raise ValueError(
            f"reward {card.name!r} got {num_views} views of {str(prompt)!r}, but texts for {len(prompt.views)}: "
            "give as many texts as views"
        )
    return prompt.views
