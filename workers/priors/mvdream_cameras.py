"""MVDream's cameras: its axes, and the sixteen numbers per view that its U-Net reads.

Two right-handed worlds besides ours occur in the published code. In *OpenGL's* +Y is up, as here, but the training
objects face +X; in *Blender's*, which the network was trained with, +Z is up and they face +X. Ours faces +Z. A
camera-to-world matrix keeps its columns (right, up, back, position); only the world's axes change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.cameras import Cameras

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["camera_condition", "normalized", "opengl_to_blender", "to_mvdream_world"]


def opengl_to_blender(c2w: Tensor) -> Tensor:
    """Turn the world of cameras (..., 4, 4) so that +Z is up: (x, y, z) → (x, −z, y)."""
    turned = c2w[..., [0, 2, 1, 3], :].clone()
    turned[..., 1, :] *= -1
    return turned


def to_mvdream_world(cameras: Cameras) -> Cameras:
    """Turn our world, whose objects face +Z, into Blender's, whose objects face +X: (x, y, z) → (z, x, y).

    Azimuth 0° still looks at the front; it is MVDream's azimuth 90° (its script's default start).
    """
    facing_x = cameras.c2w[..., [2, 1, 0, 3], :].clone()
    facing_x[..., 2, :] *= -1
    return Cameras(opengl_to_blender(facing_x), cameras.fov_y_deg)


def normalized(c2w: Tensor) -> Tensor:
    """Divide the position in (..., 4, 4) by its length (+ 1e-8); the rotation stays."""
    scaled = c2w.clone()
    position = c2w[..., :3, 3]
    scaled[..., :3, 3] = position / (position.norm(dim=-1, keepdim=True) + 1e-8)
    return scaled


def camera_condition(cameras: Cameras) -> Tensor:
    """What the U-Net reads: (..., 16), the normalized camera-to-world matrix row by row; no field of view."""
    return normalized(to_mvdream_world(cameras).c2w).flatten(-2)
