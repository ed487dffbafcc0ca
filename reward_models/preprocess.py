"""From a picture to what CLIP- and BLIP-like networks see: three different "224 bicubic"s, and which one is whose.

1. `prepare_picture`: 8-bit bicubic of Pillow, antialiased. ImageReward, Reward3D, CLIP, PickScore, aesthetic.
2. `prepare_images`: bicubic on float tensors, antialiased, not clamped; the only differentiable one. HPSv2 also
   uses it for saved pictures.
3. `prepare_images(antialias=False)`: what (2) was before torchvision 0.17, thus in the published runs of
   DreamReward and DreamDPO. On noise it differs from (2) by up to 1.9 normalized units: for reproducing only.

All: short side to `px`, center crop to a square, minus CLIP's mean, over CLIP's standard deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CLIP_MEAN", "CLIP_STD", "picture_tensor", "prepare_images", "prepare_picture"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation per RGB channel, of openai/CLIP; every reward of this package uses them."""


def prepare_images(images: Tensor, px: int, *, antialias: bool = True) -> Tensor:
    """Resize, crop and normalize images (N, 3, H, W) in [0, 1] to (N, 3, px, px); differentiable."""
    height, width = _resized(images.shape[-2], images.shape[-1], px)
    if (height, width) != tuple(images.shape[-2:]):
        images = F.interpolate(
            images, (height, width), mode="bicubic", align_corners=False, antialias=antialias
        )
    top, left = round((height - px) / 2), round((width - px) / 2)
    return _normalized(images[..., top : top + px, left : left + px])


def prepare_picture(picture: Image.Image, px: int) -> Tensor:
    """Resize and crop a picture in 8 bits, then normalize it: (3, px, px).

    A transparent picture is put on white first; the published code would drop its alpha after resizing.
    """
    height, width = _resized(picture.height, picture.width, px)
    resized = _opaque(picture)
    if (width, height) != resized.size:
        resized = resized.resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - px) / 2), round((width - px) / 2)
    return _normalized(_tensor(resized.crop((left, top, left + px, top + px)))[None])[0]


def picture_tensor(picture: Image.Image) -> Tensor:
    """Make a tensor (3, H, W) in [0, 1] of a picture; a transparent one is put on white."""
    return _tensor(_opaque(picture))


def _resized(height: int, width: int, px: int) -> tuple[int, int]:
    """The size whose short side is `px`; the long side is cut to whole pixels."""
    short, long = min(height, width), max(height, width)
    other = int(px * long / short)
    return (px, other) if height <= width else (other, px)


def _normalized(images: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(c, dtype=images.dtype, device=images.device)[:, None, None]
        for c in (CLIP_MEAN, CLIP_STD)
    )
    return (images - mean) / std


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
