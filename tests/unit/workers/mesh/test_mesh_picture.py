from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from workers.cameras import Cameras, orbit_cameras
from workers.mesh import (
    LinearShading,
    Mesh,
    agreement,
    bake,
    extract,
    mesh_report,
    rasterize,
    thumbnail,
    turntable,
    validate_glb,
    write_glb,
)
from workers.mesh.raster import cover
from workers.render import render

if TYPE_CHECKING:
    from workers.contracts import Views

SHADING = LinearShading(0.70, x=0.10, y=0.22, z=0.05)


@pytest.fixture(scope="module")
def cameras() -> Cameras:
    azimuth_deg, elevation_deg = torch.arange(8) * 45.0 + 10, torch.tensor([0.0, 30, 60, -20] * 2)
    return orbit_cameras(azimuth_deg[None], elevation_deg[None], distance=3.5, fov_y_deg=45.0)


@pytest.fixture(scope="module")
def views(pair: Any, cameras: Cameras) -> Views:
    with torch.no_grad():
        return render(pair, cameras, 64, 96)


def test_raster_of_a_ball_is_the_analytic_disk(ball: Any) -> None:
    mesh = bake(extract(ball, resolution=64, target_faces=4000), ball, texture_px=64)
    camera = orbit_cameras(torch.tensor([[30.0, 200.0]]), torch.tensor([[20.0, -60.0]]), 4.0, 45.0)
    raster = rasterize(mesh, camera, 128)
    assert raster.rgb.shape == (1, 2, 3, 128, 128)
    radius = np.linalg.norm(mesh.vertices, axis=1).mean()
    disk_px = 64 / np.tan(np.radians(22.5)) * np.tan(np.arcsin(radius / 4))
    assert raster.mask.sum(dim=(-1, -2)).flatten().tolist() == pytest.approx(
        [np.pi * disk_px**2] * 2, rel=0.02
    )
    assert raster.depth[0, 0, 0, 64, 64].item() == pytest.approx(4 - radius, abs=0.01)
    assert torch.allclose(raster.rgb[0, :, :, 64, 64], torch.tensor([0.85, 0.12, 0.10]), atol=3 / 255)
    toward_camera = torch.nn.functional.normalize(camera.c2w[0, :, :3, 3], dim=-1)
    assert ((raster.normals[0, :, :, 64, 64] * toward_camera).sum(-1) > 0.99).all()
    assert raster.rgb[0, 0, :, 0, 0].tolist() == [0, 0, 0]


def test_raster_and_render_lie_on_each_other(pair_mesh: Mesh, views: Views) -> None:
    raster = rasterize(pair_mesh, views.cameras, 64)
    hit, opaque = raster.mask > 0.5, views.opacity > 0.5
    assert (hit & opaque).sum() / (hit | opaque).sum() > 0.96
    solid = views.opacity > 0.999
    assert (raster.depth - views.depth).abs()[
        solid & hit
    ].median() < 0.05  # the field's depth is a mean over its fog


def test_nearer_triangle_hides_the_farther() -> None:
    corners = np.array([[0, 0], [20, 0], [0, 20]], float)
    inverse_depth = np.array([[0.5] * 3, [1.0] * 3, [0.25] * 3])
    face, weights = cover(np.stack([corners] * 3), inverse_depth, 8, 8)
    assert (face == 1).all()
    assert np.allclose(weights.sum(-1), 1)
    assert weights[0, 0].tolist() == [1, 0, 0]


def test_triangles_that_share_an_edge_leave_no_gap_and_degenerate_ones_do_not_count() -> None:
    square = np.array([[[0, 0], [7, 0], [7, 7]], [[0, 0], [7, 7], [0, 7]], [[3, 3], [3, 3], [3, 3]]], float)
    face, _ = cover(square, None, 8, 8)
    assert set(np.unique(face)) == {0, 1}


def test_right_mesh_agrees(pair_mesh: Mesh, views: Views) -> None:
    assert agreement(pair_mesh, views) > 0.95


def test_shrunken_moved_or_recolored_mesh_does_not_agree(pair_mesh: Mesh, views: Views) -> None:
    assert pair_mesh.skin is not None
    shrunken = replace(pair_mesh, vertices=pair_mesh.vertices * np.float32(0.8))
    moved = replace(pair_mesh, vertices=pair_mesh.vertices + np.float32([0.2, 0, 0]))
    swapped = replace(pair_mesh, skin=replace(pair_mesh.skin, texture=pair_mesh.skin.texture[..., ::-1]))
    away = replace(pair_mesh, vertices=pair_mesh.vertices + np.float32(5))
    right = agreement(pair_mesh, views)
    assert agreement(shrunken, views) < 0.7
    assert agreement(moved, views) < 0.85
    assert agreement(swapped, views) < 0.7
    assert agreement(away, views) == 0
    assert right > 0.95


def test_agreement_lights_the_mesh_as_the_prior_does(ball: Any, cameras: Cameras) -> None:
    def lit(points: torch.Tensor) -> torch.Tensor:
        factor = SHADING(torch.nn.functional.normalize(points, dim=-1).numpy())
        return ball.paint(points) * torch.from_numpy(factor)[:, None]

    field = replace(ball, paint=lit)
    with torch.no_grad():
        views = render(field, cameras, 64, 96)
    mesh = bake(extract(field, resolution=96, target_faces=4000), field, 64, SHADING)
    assert agreement(mesh, views, SHADING) > agreement(mesh, views) + 0.05
    assert agreement(mesh, views, SHADING) > 0.95


def test_thumbnail_shows_the_object_before_a_gray_backdrop(pair_mesh: Mesh) -> None:
    content = thumbnail(pair_mesh, 128)
    picture = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    assert picture.shape == (128, 128, 3)
    assert np.ptp(picture[0, 0]) == 0
    assert picture[0, 0, 0] > 200
    red, _, blue = picture[45, 64]
    assert red > 2 * blue
    red, _, blue = picture[88, 64]
    assert blue > 2 * red
    assert thumbnail(pair_mesh, 128) == content


def test_a_turntable_turns_the_object_once_around_under_a_light_that_stays(pair_mesh: Mesh) -> None:
    film = Image.open(io.BytesIO(turntable(pair_mesh, 64)))
    assert (film.format, film.size, film.n_frames, film.info["loop"]) == ("WEBP", (64, 64), 36, 0)  # type: ignore[attr-defined]
    frames = []
    for number in range(36):
        film.seek(number)
        frames.append(np.asarray(film.convert("RGB")).astype(int))
        assert film.info["duration"] == 83
    first = np.asarray(Image.open(io.BytesIO(thumbnail(pair_mesh, 64)))).astype(int)
    assert abs(frames[0] - first).mean() < 4, "it begins as the thumbnail"
    # The cube looks the same after a quarter and a half turn, its lit side too; in between it does not.
    eighth, quarter, half = (abs(frames[turn] - frames[0])[:32].mean() for turn in (5, 9, 18))
    assert max(quarter, half) < 4 < eighth


def test_report_is_plain_json_about_the_written_file(pair_mesh: Mesh, views: Views) -> None:
    content = write_glb(pair_mesh)
    report = mesh_report(pair_mesh, validate_glb(content), agreement(pair_mesh, views))
    assert json.loads(json.dumps(report)) == report
    assert report["faces"] == len(pair_mesh.faces)
    assert report["size_bytes"] == len(content)
    assert report["watertight"] is True
    assert 0.95 < report["agreement"] <= 1
