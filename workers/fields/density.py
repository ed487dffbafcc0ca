"""From a network's raw output to a density: the blob that a field starts as, and the activation.

    density(x) = activation(raw(x) + bias(x))

Magic3D, arXiv 2211.10440, section 4.1: bias(x) = scale · (1 − |x|/width);
DreamFusion, arXiv 2209.14988, appendix A.1: bias(x) = scale · exp(−|x|²/(2 width²)).
The softplus and the scale are those of MVDream-threestudio, `implicit_volume.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, assert_never

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Activation", "Blob", "activate", "blob_bias"]

Activation = Literal["softplus", "shifted_softplus", "exp", "trunc_exp", "shifted_trunc_exp", "relu", "none"]

_MAX_EXPONENT = 15.0
"""The gradient of `trunc_exp` grows no further beyond this. Source: threestudio, `ops.py`."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A field's first shape. Source of the defaults: `configs/mvdream-sd21.yaml` of MVDream-threestudio."""

    form: Literal["magic3d", "dreamfusion", "constant"] = "magic3d"
    scale: float = 10.0
    width: float = 0.5
    """Where a cone reaches zero, or a bell's standard deviation."""


def blob_bias(points_P3: Tensor, blob: Blob) -> Tensor:
    """(P, 3) positions → (P,): what is added to the raw density there; `constant` adds the scale everywhere."""
    match blob.form:
        case "magic3d":
            return blob.scale * (1 - points_P3.norm(dim=-1) / blob.width)
        case "dreamfusion":
            return blob.scale * torch.exp(-points_P3.square().sum(-1) / (2 * blob.width**2))
        case "constant":
            return torch.full_like(points_P3[:, 0], blob.scale)
        case _:
            assert_never(blob.form)


def activate(raw: Tensor, activation: Activation) -> Tensor:
    """Turn raw values into densities ≥ 0 (`none`: into themselves); `shifted` ones take the value at raw − 1."""
    match activation:
        case "softplus":
            return F.softplus(raw)
        case "shifted_softplus":
            return F.softplus(raw - 1)
        case "exp":
            return raw.exp()
        case "trunc_exp":
            return _TruncatedExp.apply(raw)  # type: ignore[no-untyped-call]
        case "shifted_trunc_exp":
            return _TruncatedExp.apply(raw - 1)  # type: ignore[no-untyped-call]
        case "relu":
            return raw.relu()
        case "none":
            return raw
        case _:
            assert_never(activation)


class _TruncatedExp(torch.autograd.Function):
    """exp(x), with the gradient exp(min(x, 15)), so that a dense place cannot blow up a step."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> Tensor:
        ctx.save_for_backward(raw)
        return raw.exp()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (raw,) = ctx.saved_tensors
        return gradients[0] * raw.clamp(max=_MAX_EXPONENT).exp()
