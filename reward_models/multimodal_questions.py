"""What a multimodal model is asked, and whom one asks: the seam between judges and transports.

A transport (`multimodal_endpoint`, `multimodal_local`) turns questions into texts and knows nothing of scores; a
format (`multimodal_formats`) reads scores out of texts and knows nothing of models.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from PIL import Image

from reward_models.actor import RewardUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["JudgeUnavailable", "Question", "Transport", "UnparsedAnswers", "collage", "picture_bytes"]

BAR_PX = 8
"""Width of the white bar between the two halves of a collage."""


class JudgeUnavailable(RewardUnavailable):
    """A multimodal model did not answer, also not after retries: the attempt fails and may be tried again."""


class UnparsedAnswers(RewardUnavailable):
    """A multimodal model answered, but not in the form it was asked for, also not when asked again."""


@dataclass(frozen=True, slots=True)
class Question:
    """One turn of a user: pictures and a text."""

    text: str
    pictures: tuple[bytes, ...] = ()
    """PNG files."""
    pictures_first: bool = True
    reminder: str = ""
    """Added to the text when the same is asked again; no part of what a question is remembered by."""

    @property
    def said(self) -> str:
        """The whole text that the model reads."""
        return f"{self.text}\n\n{self.reminder}" if self.reminder else self.text

    def again(self, reason: str) -> Question:
        """Ask the same with a word on why the last answer was of no use."""
        return replace(
            self,
            reminder=f"Your last answer could not be read: {reason}. Answer in exactly the form asked for.",
        )

    def key(self, model: str) -> str:
        """Identify the question put to `model`: a hash of the pictures and of the text."""
        hashes = [hashlib.sha256(picture).hexdigest() for picture in self.pictures]
        return hashlib.sha256(repr((model, hashes, self.pictures_first, self.text)).encode()).hexdigest()


class Transport(Protocol):
    """A multimodal model, wherever it runs. Safe to call from several threads."""

    @property
    def model(self) -> str:
        """Which model answers: part of what answers are remembered by."""
        ...

    def answer(self, questions: Sequence[Question]) -> list[str]:
        """Answer each question with a text; raises JudgeUnavailable when the model cannot be reached."""
        ...


def picture_bytes(image: Tensor) -> bytes:
    """Encode an image (3, H, W) in [0, 1] as an 8-bit PNG file."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def collage(left: Tensor, right: Tensor) -> Tensor:
    """Put the views (V, 3, H, W) of two objects side by side, each in two columns, a white bar between them."""
    halves = [_tiled(left), _tiled(right)]
    bar = torch.ones(3, halves[0].shape[1], BAR_PX, dtype=left.dtype, device=left.device)
    return torch.cat([halves[0], bar, halves[1]], 2)


def _tiled(views: Tensor) -> Tensor:
    """(V, 3, H, W) → (3, ⌈V/2⌉·H, 2·W); a single view stays as it is, an empty place is white."""
    if len(views) == 1:
        return views[0]
    if len(views) % 2:
        views = torch.cat([views, torch.ones_like(views[:1])])
    rows = [torch.cat([a, b], 2) for a, b in zip(views[::2], views[1::2], strict=True)]
    return torch.cat(rows, 1)
