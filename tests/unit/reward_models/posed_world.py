"""Objects of the procedural world with exact pictures, depth and cameras: intact, or spoilt in one way."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reward_models.contracts import PosedViews
from workers.cameras import Cameras, camera_rays, orbit_cameras
from workers.embedded.preference_pairs import held_out_description
from workers.embedded.primitives import intersect
from workers.embedded.raycast import NO_PART, SHADE_SCALE, raycast
from workers.embedded.world import (
    COLORS,
    PALETTE,
    SHAPES,
    Arrangement,
    Description,
    Part,
    build,
    ground_truth_points,
    part_colors,
    random_description,
    to_unit,
)

IMAGE_PX = 48
NUM_VIEWS = 8
LEAST_GAP = 0.1
"""A blob nearer to the object than this is not called a floater: its picture touches the object's."""


class Painted(NamedTuple):
    """An arrangement with the color of each part."""

    arrangement: Arrangement
    colors: list[str]

    def plus(self, part: Part, color: str) -> Painted:
        parts, slots = (*self.arrangement.parts, part), (*self.arrangement.slots, 0)
        return Painted(self.arrangement._replace(parts=parts, slots=slots), [*self.colors, color])


def draw_description(rng: np.random.Generator) -> Description:
    """Draw one of two basic shapes together, or anything else the world has."""
    return held_out_description(rng) if rng.random() < 0.5 else random_description(rng)


def paint(description: Description, rng: np.random.Generator) -> Painted:
    arrangement = build(description, rng)
    return Painted(arrangement, part_colors(description, arrangement))


def two_rings(azimuth_deg: float, num_views: int = NUM_VIEWS) -> Cameras:
    """Cameras (V,) evenly around the object, from below and from above in turn."""
    azimuth = azimuth_deg + torch.arange(num_views) * (360 / num_views)
    return orbit_cameras(azimuth, torch.tensor([-15.0, 35.0]).repeat(num_views)[:num_views], 3.6, 40.0)


def show(painted: Painted, cameras: Cameras, image_px: int = IMAGE_PX) -> PosedViews:
    """Picture one object exactly: G = 1."""
    part_ids, shades = raycast(painted.arrangement, cameras, image_px)
    hit = part_ids != NO_PART
    palette = np.array([PALETTE[color] for color in painted.colors], np.float32) / 255
    rgb = palette[np.where(hit, part_ids, 0)] * (shades * hit / SHADE_SCALE)[..., None]
    return PosedViews(
        torch.from_numpy(rgb.astype(np.float32)).clamp(0, 1).permute(0, 3, 1, 2)[None],
        torch.from_numpy(hit.astype(np.float32))[None, :, None],
        _distances(painted.arrangement, cameras, image_px)[None, :, None],
        cameras.c2w[None],
        cameras.fov_y_deg[None],
    )


def two_faced(
    front: PosedViews, description: Description, cameras: Cameras, rng: np.random.Generator
) -> PosedViews:
    """Let half of the views show the object with another shape in place of its (first) thing."""
    shape = str(rng.choice([shape for shape in SHAPES if shape != description.a.name]))
    thing = description.a._replace(name=shape, color=description.a.color or "red", accent=None)
    back = show(paint(description._replace(a=thing), rng), cameras)
    half = front.rgb.shape[1] // 2
    return PosedViews(*(torch.cat([a[:, :half], b[:, half:]], 1) for a, b in zip(front, back, strict=True)))


def draw_floater(painted: Painted, rng: np.random.Generator) -> tuple[Part, str]:
    """Draw a blob as `preference_pairs` does, but again until it floats: it touches nothing."""
    surface, _ = ground_truth_points(painted.arrangement, 2000, rng)
    while True:
        half, angle = float(rng.uniform(0.10, 0.16)), rng.uniform(0, 2 * np.pi)
        center = (0.78 * float(np.cos(angle)), float(rng.uniform(-0.6, 0.8)), 0.78 * float(np.sin(angle)))
        if np.linalg.norm(surface - np.array(center), axis=1).min() > half + LEAST_GAP:
            return Part("sphere", center, (half,) * 3, "main"), str(rng.choice(COLORS))


def behind_mist(views: PosedViews, blob: Part, color: str, cameras: Cameras) -> PosedViews:
    """Put a ball of mist, half transparent, before or beside the object."""
    larger = blob._replace(half=(1.8 * blob.half[0],) * 3)
    ball = show(Painted(Arrangement((larger,), (0,), np.zeros((2, 6))), [color]), cameras)
    in_front = (views.opacity == 0) | (ball.depth < views.depth)
    alpha = 0.5 * ball.opacity * in_front
    return views._replace(
        rgb=alpha * ball.rgb + (1 - alpha) * views.rgb,
        opacity=alpha + (1 - alpha) * views.opacity,
        depth=alpha * ball.depth + (1 - alpha) * views.depth,
    )


def colored_by_view(views: PosedViews, rng: np.random.Generator) -> PosedViews:
    """Let each channel swell and fade by up to 40 %, smoothly, once around the object."""
    turn = torch.arange(views.rgb.shape[1]) * (2 * torch.pi / views.rgb.shape[1])
    gain = 1 + 0.4 * torch.sin(turn[:, None] + torch.from_numpy(rng.uniform(0, 2 * np.pi, 3)).float())
    return views._replace(rgb=(views.rgb * gain[None, :, :, None, None]).clamp(0, 1))


def auc(better: list[float], worse: list[float]) -> float:
    """Share of all pairs (one of each) in which the better one has the higher value; a tie counts half."""
    a, b = torch.tensor(better)[:, None], torch.tensor(worse)
    return float((a > b).float().mean() + 0.5 * (a == b).float().mean())


def _distances(arrangement: Arrangement, cameras: Cameras, image_px: int) -> Tensor:
    """(V, image_px, image_px): how far along the ray the first hit is, 0 where there is none."""
    rays = [x.reshape(-1, 3).numpy() for x in camera_rays(cameras, image_px, image_px)]
    hits = [
        intersect(part.solid, to_unit(part, rays[0]), to_unit(part, rays[1], directions=True)).t
        for part in arrangement.parts
    ]
    nearest = np.stack(hits).min(0)
    found = np.where(np.isfinite(nearest), nearest, 0).astype(np.float32)
    return torch.from_numpy(found).reshape(-1, image_px, image_px)
