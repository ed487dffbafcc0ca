"""Look at a finished mesh: does it agree with the field's renders, what does it look like, what is it made of."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from workers.cameras import orbit_cameras
from workers.mesh.raster import rasterize

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.contracts import Views
    from workers.mesh.glb_check import GlbReport
    from workers.mesh.surface import Mesh

__all__ = ["agreement", "mesh_report", "thumbnail", "turntable"]

AZIMUTH_DEG, ELEVATION_DEG, FOV_Y_DEG = 30.0, 22.0, 30.0
"""The thumbnail's camera: the front, seen a little from the right and from above."""
MARGIN = 1.12
"""How much wider the picture is than the object."""
SUPERSAMPLING = 2
NUM_FRAMES, FRAME_MS = 36, 83
"""Of a turntable: once around in 3 s."""
KEY_LIGHT, FILL_LIGHT = (0.45, 0.8, 0.55), (-0.7, 0.15, 0.4)
BACKDROP_TOP, BACKDROP_BOTTOM = 0.96, 0.86
"""sRGB grays."""

Image_HWC = NDArray[np.float64]


def agreement(
    mesh: Mesh,
    views: Views,
    shading: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> float:
    """Measure in [0, 1] how well a mesh shows what the field shows, over views rendered from the field.

    agreement = IoU({mesh hit}, {opacity > 1/2}) · (1 − mean |mesh color − rgb / opacity|), the IoU over all pixels
    of all views together, the mean over the pixels inside both silhouettes and the three sRGB channels.
    `shading` is what `bake` divided out: the mesh is lit with it again before colors are compared. A mesh that
    agrees reaches .9 and more; limits are half a pixel along the outline and the fog of the field.
    """
    image_px = views.rgb.shape[-1]
    raster = rasterize(mesh, views.cameras, image_px)
    opacity = views.opacity.detach().float().cpu()
    seen, hit = opacity > 0.5, raster.mask > 0.5
    both = (seen & hit)[..., 0, :, :]
    if not both.any():
        return 0.0
    iou = float((seen & hit).sum() / (seen | hit).sum())
    color = raster.rgb.movedim(-3, -1)[both]
    if shading is not None:
        factor = torch.from_numpy(shading(raster.normals.movedim(-3, -1)[both].numpy()))
        color = (color * factor[:, None]).clamp(0, 1)
    wanted = (views.rgb.detach().float().cpu() / opacity.clamp_min(0.5)).movedim(-3, -1)[both]
    return iou * (1 - float((color - wanted).abs().mean()))


def mesh_report(mesh: Mesh, glb: GlbReport, agreement: float) -> dict[str, Any]:
    """Collect what a user wants to know about a mesh, as measured on the written file: plain JSON values."""
    return {
        "faces": glb.faces,
        "vertices": glb.vertices,
        "watertight": glb.watertight,
        "components": glb.components,
        "non_manifold_edges": glb.non_manifold_edges,
        "size_bytes": glb.size_bytes,
        "texture_px": None if glb.texture_px is None else list(glb.texture_px),
        "iso_level": round(mesh.level, 4),
        "agreement": round(agreement, 4),
        "bounds": [list(glb.bounds[0]), list(glb.bounds[1])],
    }


def thumbnail(mesh: Mesh, image_px: int = 512) -> bytes:
    """Photograph a mesh under soft light, standing before a neutral backdrop: a PNG of image_px × image_px."""
    png = io.BytesIO()
    _photograph(mesh, image_px).save(png, format="PNG")
    return png.getvalue()


def turntable(mesh: Mesh, image_px: int = 256) -> bytes:
    """Film a mesh turning once around its vertical axis, as in its thumbnail: an animated WebP that repeats."""
    first, *others = (_photograph(mesh, image_px, frame * 360 / NUM_FRAMES) for frame in range(NUM_FRAMES))
    webp = io.BytesIO()
    first.save(webp, format="WEBP", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    return webp.getvalue()


def _photograph(mesh: Mesh, image_px: int, turn_deg: float = 0.0) -> Image.Image:
    """Take the picture after the object, but not the light, has turned to the right by `turn_deg`."""
    center = (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2
    radius = float(np.linalg.norm(mesh.vertices - center, axis=1).max())
    distance = MARGIN * radius / np.sin(np.radians(FOV_Y_DEG / 2))
    cameras = orbit_cameras(
        torch.tensor([AZIMUTH_DEG - turn_deg]), torch.tensor([ELEVATION_DEG]), distance, FOV_Y_DEG
    )
    cameras.c2w[..., :3, 3] += torch.from_numpy(center)
    large_px = SUPERSAMPLING * image_px
    raster = rasterize(mesh, cameras, large_px)
    rgb, mask, depth, normals = (image[0].permute(1, 2, 0).double().numpy() for image in raster)
    light = (
        _soft_light(normals @ _turn(turn_deg).T) * _crevices(depth[..., 0], mask[..., 0], radius)[..., None]
    )
    lit = _to_srgb(_to_linear(rgb) * light)
    backdrop = _backdrop(mesh, cameras.c2w[0].double().numpy(), large_px)
    picture = np.where(mask > 0, lit, backdrop)
    picture = picture.reshape(image_px, SUPERSAMPLING, image_px, SUPERSAMPLING, 3).mean((1, 3))
    return Image.fromarray(np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8))


def _turn(degrees: float) -> NDArray[np.float64]:
    """Rotate around +Y, from the front (+Z) toward the right (+X): (3, 3)."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def _soft_light(normals: Image_HWC) -> Image_HWC:
    """Linear light on a matte surface: a bright sky, a dim floor, a key light and a weak fill light."""
    light = 0.42 + 0.13 * normals[..., 1:2]
    for direction, strength in ((KEY_LIGHT, 0.62), (FILL_LIGHT, 0.16)):
        toward = np.array(direction) / np.linalg.norm(direction)
        # Wrapped around the terminator, as light from a large softbox is.
        light = light + strength * np.clip((normals @ toward[:, None] + 0.25) / 1.25, 0, 1)
    return light


def _crevices(depth: NDArray[np.float64], mask: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Darken what lies behind its surroundings (screen-space ambient occlusion by a blurred depth): (H, W)."""
    box_px = depth.shape[0] // 16

    def blurred(image: NDArray[np.float64]) -> NDArray[np.float64]:
        # Two boxes look like a Gaussian, and take a third of its time.
        twice: NDArray[np.float64] = ndimage.uniform_filter(ndimage.uniform_filter(image, box_px), box_px)
        return twice

    around = blurred(depth * mask) / np.maximum(blurred(mask), 1e-6)
    return 1 - np.clip((depth - around) / (0.12 * radius), 0, 1) * 0.35 * mask


def _backdrop(mesh: Mesh, c2w: NDArray[np.float64], px: int) -> Image_HWC:
    """A gray gradient, and on the floor below the object its soft shadow: (px, px, 3)."""
    gradient = np.linspace(BACKDROP_TOP, BACKDROP_BOTTOM, px)[:, None, None] * np.ones((1, px, 3))
    footprint, span = _footprint(mesh)
    # Where each pixel's ray meets the floor.
    tangent = np.tan(np.radians(FOV_Y_DEG / 2)) * (2 * (np.arange(px) + 0.5) / px - 1)
    x, y = np.meshgrid(tangent, -tangent)
    direction = np.stack([x, y, -np.ones_like(x)], -1) @ c2w[:3, :3].T
    floor_y = float(mesh.vertices[:, 1].min())
    with np.errstate(divide="ignore"):
        distance = (floor_y - c2w[1, 3]) / direction[..., 1]
    ground = c2w[:3, 3] + np.where(distance > 0, distance, 0)[..., None] * direction
    cell = (ground[..., (0, 2)] / span + 1) / 2 * footprint.shape[0] - 0.5
    shadow = ndimage.map_coordinates(footprint, [cell[..., 0], cell[..., 1]], order=1, mode="constant")
    return gradient * (1 - np.where(distance > 0, shadow, 0)[..., None])


def _footprint(mesh: Mesh) -> tuple[NDArray[np.float64], float]:
    """The object's shadow on the floor as a map over x, z in [−span, span]: darker where it stands closer."""
    num_cells, span = 128, 2.0
    height = mesh.vertices[:, 1] - mesh.vertices[:, 1].min()
    cells = np.clip(((mesh.vertices[:, (0, 2)] / span + 1) / 2 * num_cells).astype(int), 0, num_cells - 1)
    closeness = np.zeros((num_cells, num_cells))
    np.maximum.at(closeness, (cells[:, 0], cells[:, 1]), np.exp(-height / 0.35))
    closeness = ndimage.grey_closing(closeness, size=5)
    return 0.55 * ndimage.gaussian_filter(closeness, 1.5) + 0.25 * ndimage.gaussian_filter(
        closeness, 5.0
    ), span


def _to_linear(srgb: Image_HWC) -> Image_HWC:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _to_srgb(linear: Image_HWC) -> Image_HWC:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
