"""What a field is asked to be besides liked by the prior: pure functions, weighed by the field that uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["opacity_ambiguity", "total_variation"]


def total_variation(grid: Tensor) -> Tensor:
    """mean|∂/∂z| + mean|∂/∂y| + mean|∂/∂x| of a grid (1, C, Z, Y, X), per voxel: noise becomes plains with edges."""
    return sum((grid.diff(dim=axis).abs().mean() for axis in (-3, -2, -1)), start=grid.new_zeros(()))


def opacity_ambiguity(opacity: Tensor) -> Tensor:
    """mean α(1 − α): 0 when every pixel is either empty or covered, ¼ at most."""
    return (opacity * (1 - opacity)).mean()
