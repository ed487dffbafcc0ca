from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from workers.mesh import LinearShading, Mesh, bake, extract
from workers.mesh.raster import sample_texture

SHADING = LinearShading(0.70, x=0.10, y=0.22, z=0.05)


def texture_errors(mesh: Mesh, truth: Any, at: np.ndarray) -> np.ndarray:
    """Largest channel error, in 8-bit levels, of the texture at barycentric point `at` of every face."""
    assert mesh.skin is not None
    points = np.einsum("fck,c->fk", mesh.vertices[mesh.faces], at).astype(np.float32)
    found = 255 * sample_texture(mesh.skin.texture, np.einsum("fck,c->fk", mesh.skin.corner_uv, at))
    errors: np.ndarray = np.abs(found - 255 * truth(torch.from_numpy(points)).numpy()).max(1)
    return errors


def away_from_contact(points: np.ndarray) -> np.ndarray:
    """Points at least four cells above or below the height where box and ball of the pair meet."""
    far: np.ndarray = np.abs(points[:, 1] - 0.05) > 4 * 2 / 96
    return far


def test_vertex_and_texture_colors_are_the_fields(pair: Any, pair_mesh: Mesh) -> None:
    assert pair_mesh.skin is not None
    truth = 255 * pair.color(torch.from_numpy(pair_mesh.vertices)).numpy()
    errors = np.abs(pair_mesh.skin.vertex_colors - truth).max(1)
    assert errors[away_from_contact(pair_mesh.vertices)].max() <= 3
    for at in (np.array([1, 0, 0]), np.array([0.2, 0.5, 0.3])):
        points = np.einsum("fck,c->fk", pair_mesh.vertices[pair_mesh.faces], at)
        errors = texture_errors(pair_mesh, pair.color, at)
        assert errors[away_from_contact(points)].max() <= 3


def test_shading_of_the_prior_is_divided_out(ball: Any) -> None:
    def lit(points: torch.Tensor) -> torch.Tensor:
        factor = SHADING(torch.nn.functional.normalize(points, dim=-1).numpy())
        return ball.paint(points) * torch.from_numpy(factor)[:, None]

    field = replace(ball, paint=lit)
    mesh = extract(field, resolution=96, target_faces=6000)
    baked = bake(mesh, field, texture_px=256, shading=SHADING)
    assert np.quantile(texture_errors(baked, ball.color, np.array([0.3, 0.3, 0.4])), 0.99) <= 3
    unlit = bake(mesh, field, texture_px=256)
    assert texture_errors(unlit, ball.color, np.array([0.3, 0.3, 0.4])).mean() > 30


def test_linear_shading_is_the_formula() -> None:
    normals = np.array([[1, 0, 0], [0, -1, 0], [0, 0, 1]], np.float32)
    assert np.allclose(SHADING(normals), [0.80, 0.48, 0.75])


def test_color_of_empty_space_does_not_reach_the_surface(ball: Any) -> None:
    def white_outside(points: torch.Tensor) -> torch.Tensor:
        return torch.where((ball.sdf(points) > 0.04)[:, None], torch.ones(3), ball.paint(points))

    field = replace(ball, paint=white_outside)
    baked = bake(extract(field, resolution=96, target_faces=4000), field, texture_px=128)
    assert texture_errors(baked, ball.color, np.array([0.3, 0.3, 0.4])).max() <= 3


def test_each_part_of_the_surface_has_its_own_place_in_the_texture(pair_mesh: Mesh) -> None:
    assert pair_mesh.skin is not None
    uv = pair_mesh.skin.corner_uv
    assert uv.shape == (len(pair_mesh.faces), 3, 2)
    assert uv.min() >= 0
    assert uv.max() <= 1
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    assert 0.4 < area < 1


def test_charts_smaller_than_a_texel_keep_their_color(pair: Any) -> None:
    mesh = bake(extract(pair, resolution=96, target_faces=6000), pair, texture_px=32)
    points = mesh.vertices[mesh.faces[:, 0]]
    wrong = texture_errors(mesh, pair.color, np.array([1, 0, 0])) > 60
    assert wrong[np.abs(points[:, 1] - 0.05) > 0.15].mean() < 0.01
