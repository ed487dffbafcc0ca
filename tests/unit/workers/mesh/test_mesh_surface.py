from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from workers.cameras import orbit_cameras
from workers.mesh import EmptyMesh, Mesh, extract, rasterize, topology
from workers.mesh.surface import dimming
from workers.render import render

CELL = 2 / 96


def volume(mesh: Mesh) -> float:
    return float(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).volume)


def silhouette_iou(mesh: Mesh, field: Any) -> float:
    cameras = orbit_cameras(torch.arange(6) * 50.0 + 20, torch.linspace(-40, 70, 6), 3.5, 45.0)
    with torch.no_grad():
        opaque = render(field, cameras, 64, 64).opacity > 0.5
    hit = rasterize(mesh, cameras, 64).mask > 0.5
    return float((opaque & hit).sum() / (opaque | hit).sum())


@pytest.mark.parametrize("shape", ["ball", "box", "torus", "cone"])
def test_surface_lies_within_a_cell_of_the_true_one(shape: str, request: pytest.FixtureRequest) -> None:
    solid = request.getfixturevalue(shape)
    mesh = extract(solid, resolution=96, target_faces=10_000)
    distance = solid.sdf(torch.from_numpy(mesh.vertices)).abs()
    assert float(distance.quantile(0.99)) < CELL
    assert volume(mesh) == pytest.approx(solid.volume, rel=0.15)
    assert silhouette_iou(mesh, solid) > 0.97


@pytest.mark.parametrize("shape", ["ball", "box", "torus", "cone"])
def test_surface_is_closed_in_one_piece_and_faces_outward(shape: str, request: pytest.FixtureRequest) -> None:
    mesh = extract(request.getfixturevalue(shape), resolution=64, target_faces=5000)
    assert topology(mesh.faces) == (True, 1, 0, 0)
    assert volume(mesh) > 0
    independent = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert independent.is_watertight
    assert independent.is_winding_consistent


def test_torus_keeps_its_hole(torus: Any) -> None:
    mesh = extract(torus, resolution=64)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).euler_number == 0


def test_haze_does_not_close_the_hole_of_a_torus(torus: Any) -> None:
    class Hazy:
        def density(self, points: torch.Tensor) -> torch.Tensor:
            inside = (points.norm(dim=-1) < 0.6) & (points[:, 1].abs() < 0.2)
            return torus.density(points) + 0.8 * inside  # the view through the hole is 27 % opaque

    mesh = extract(Hazy(), resolution=96)  # type: ignore[arg-type]
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).euler_number == 0


def test_smoothing_keeps_the_tip_of_a_cone_and_the_corners_of_a_box(cone: Any, box: Any) -> None:
    assert extract(cone, resolution=96).vertices[:, 1].max() > 0.8 - 2 * CELL
    corner = np.array([0.5, 0.4, 0.6])
    to_corner = np.linalg.norm(extract(box, resolution=96).vertices - corner, axis=1)
    assert to_corner.min() < CELL


@pytest.mark.parametrize("shape", ["ball", "torus", "box"])
def test_fog_far_thinner_than_any_fixed_level_gives_the_silhouette_that_cameras_see(
    shape: str, request: pytest.FixtureRequest
) -> None:
    fog = request.getfixturevalue(shape).foggy()
    assert fog.peak < 25  # the usual fixed level finds nothing at all
    mesh = extract(fog, resolution=96)
    assert silhouette_iou(mesh, fog) > 0.92
    assert topology(mesh.faces).watertight


def test_hollow_object_gets_one_outer_surface(ball: Any) -> None:
    shell = replace(ball, sdf=lambda points: (points.norm(dim=-1) - 0.65).abs() - 0.05)
    mesh = extract(shell, resolution=96)
    assert topology(mesh.faces).components == 1
    assert volume(mesh) == pytest.approx(ball.volume, rel=0.1)


def test_weak_spot_of_the_shell_leaves_no_pit(box: Any) -> None:
    class Weak:
        def density(self, points: torch.Tensor) -> torch.Tensor:
            spot = (points - torch.tensor([0.0, 0.4, 0.0])).norm(dim=-1) < 0.15
            return box.density(points) * torch.where(spot, 0.1, 1.0)

    top = extract(Weak(), resolution=96).vertices  # type: ignore[arg-type]
    middle = (np.abs(top[:, 0]) < 0.1) & (np.abs(top[:, 2]) < 0.1) & (top[:, 1] > 0)
    assert top[middle, 1].min() > 0.4 - 2 * CELL


def test_floaters_are_dropped(ball: Any) -> None:
    def with_speck(points: torch.Tensor) -> torch.Tensor:
        return torch.minimum(ball.sdf(points), (points - 0.85).norm(dim=-1) - 0.06)

    mesh = extract(replace(ball, sdf=with_speck), resolution=96)
    assert topology(mesh.faces).components == 1
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.8


def test_object_cut_by_the_box_is_closed_at_the_wall(ball: Any) -> None:
    mesh = extract(replace(ball, sdf=lambda points: ball.sdf(points - 0.6)), resolution=64)
    assert topology(mesh.faces).watertight
    assert np.abs(mesh.vertices).max() <= 1


@pytest.mark.parametrize("target_faces", [300, 2000, 7000])
def test_target_faces_is_an_upper_bound_that_is_used(pair: Any, target_faces: int) -> None:
    mesh = extract(pair, resolution=64, target_faces=target_faces)
    assert 0.9 * target_faces <= len(mesh.faces) <= target_faces
    assert topology(mesh.faces).watertight


@pytest.mark.parametrize("density", [0.0, 0.05])
def test_nothing_or_a_haze_is_an_empty_mesh(ball: Any, density: float) -> None:
    haze = replace(ball, peak=density)
    with pytest.raises(EmptyMesh, match=r"opacity of 0\.0.*more steps, another seed"):
        extract(haze, resolution=32)


def test_diverged_field_is_refused(ball: Any) -> None:
    with pytest.raises(ValueError, match=r"NaN or infinite.*diverged"):
        extract(replace(ball, peak=float("nan")), resolution=32)


def test_same_field_gives_the_same_mesh(pair: Any) -> None:
    one, two = (extract(pair, resolution=64, target_faces=3000) for _ in range(2))
    assert np.array_equal(one.vertices, two.vertices)
    assert np.array_equal(one.faces, two.faces)


def test_dimming_is_the_least_optical_depth_to_the_outside() -> None:
    # Cells of 1/2 with density 2: half a cell dims by 1/2, each further cell by 1.
    uniform = dimming(np.full((4, 4, 4), 2.0, np.float32))
    assert uniform[0, 1, 2] == pytest.approx(0.5)
    assert uniform[1, 2, 1] == pytest.approx(1.5)
    # A clear diagonal lets light in to a cell that is walled up on its six sides.
    walled = np.full((5, 5, 5), 100.0, np.float32)
    walled[2, 2, 2] = walled[1, 1, 1] = walled[0, 0, 0] = 0
    assert dimming(walled)[2, 2, 2] == 0


def test_topology_counts_what_is_open_or_doubled() -> None:
    tetrahedron = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], np.int32)
    assert topology(tetrahedron) == (True, 1, 0, 0)
    assert topology(np.concatenate([tetrahedron, tetrahedron + 4])).components == 2
    assert topology(tetrahedron[:3]) == (False, 1, 0, 3)
    turned = tetrahedron.copy()
    turned[0] = turned[0, ::-1]
    assert topology(turned) == (False, 1, 3, 0)
    fin = np.concatenate([tetrahedron, [[0, 1, 4]]]).astype(np.int32)
    assert topology(fin) == (False, 1, 1, 2)


def test_normals_are_sharp_across_creases_and_smooth_elsewhere(box: Any, ball: Any) -> None:
    round_mesh = extract(ball, resolution=64, target_faces=4000)
    outward = round_mesh.vertices[round_mesh.faces]
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    assert (round_mesh.corner_normals * outward).sum(-1).min() > 0.98
    corners = trimesh.creation.box((1, 1, 1))
    cube = Mesh(corners.vertices.astype(np.float32), corners.faces.astype(np.int32), level=1.0, cell=0.1)
    assert np.allclose(np.abs(cube.corner_normals).max(-1), 1)
