"""Golden cases of the issue *field*: see `tests/golden/adapters.py`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from workers.cameras import camera_rays, orbit_cameras, view_projection
from workers.contracts import Surface
from workers.fields.density import Blob
from workers.fields.hash_encoding import Frequencies
from workers.fields.hashgrid import HashGridField, HashGridSizes, to_color
from workers.regularizers import (
    Penalties,
    backfacing,
    depth_spread,
    opaqueness,
    orientation,
    sparsity,
    surface_penalty,
)
from workers.render import (
    blend_colors,
    depth_variance,
    opacity_and_depth,
    over_background,
    sample_alphas,
    sample_transmittance,
    sample_weights,
)
from workers.shading import PointLight, shade

if TYPE_CHECKING:
    from typing import Any

    from tests.golden.adapters import Adapter
    from tests.golden.compare import Case, Tensors

__all__ = ["CASES"]

NORMALS = {
    "analytic": "analytic",
    "finite_difference": "forward_difference",
    "finite_difference_laplacian": "central_difference",
}
"""Our names of the reference code's kinds of normals."""
OURS_XYZ = [1, 2, 0, 3]
"""Where our axes are among the reference's: its world has z up and fronts towards x, ours y up and towards z."""


def implicit_volume(case: Case, tensors: Tensors) -> dict[str, Any]:
    field = field_of(case["config"])
    saved = {
        name[3:]: tensor for name, tensor in tensors.items() if name.startswith("sd.") and "bbox" not in name
    }
    own = {name: tensor for name, tensor in field.state_dict().items() if name not in saved}
    field.load_state_dict({**own, **saved})
    points = tensors["in.points"]

    density = field.density(points)
    density.sum().backward()
    # The forward difference of the reference that made these numbers points inwards.
    sign = -1 if field.sizes.normals == "forward_difference" else 1
    answers = {
        "out.density": density[:, None],
        "out.features": field.features(points),
        "out.normal": sign * field.normals(points),
    }
    for i, weight in enumerate(field.density_network.parameters()):
        answers[f"out.grad_sum_density.density_network.{i}"] = weight.grad
    with torch.no_grad():
        for weight in field.density_network.parameters():
            weight.zero_()
    answers["out.raw_density_when_net_is_zero"] = field.raw_density(points)[:, None]
    answers["out.density_when_net_is_zero"] = field.density(points)[:, None]
    return answers


def field_of(config: dict[str, Any]) -> HashGridField:
    encoding, network = config["pos_encoding_config"], config["mlp_network_config"]
    assert (encoding["otype"], network["otype"]) == ("ProgressiveBandFrequency", "VanillaMLP")
    assert (network["activation"], network["output_activation"]) == ("ReLU", "none")
    bias = config.get("density_bias", "blob_magic3d")
    scale, width = config.get("density_blob_scale", 10.0), config.get("density_blob_std", 0.5)
    blob: dict[str, Any] = (
        {"form": bias.removeprefix("blob_"), "scale": scale, "width": width}
        if isinstance(bias, str)
        else {"form": "constant", "scale": bias}
    )
    sizes: dict[str, Any] = {
        "activation": config.get("density_activation", "softplus") or "none",
        "normals": NORMALS[config.get("normal_type", "finite_difference")],
    }
    return HashGridField(
        HashGridSizes(
            encoding=Frequencies(encoding["n_frequencies"]),
            hidden_width=network["n_neurons"],
            hidden_layers=network["n_hidden_layers"],
            num_features=config.get("n_feature_dims", 3),
            blob=Blob(**blob),
            normal_step=config.get("finite_difference_normal_eps", 0.01),
            radius=config.get("radius", 1.0),
            **sizes,
        )
    )


def volume_render(case: Case, tensors: Tensors) -> dict[str, Any]:
    density = tensors["in.sigma"].requires_grad_()
    intervals = tensors["in.t_ends"] - tensors["in.t_starts"]
    middles = (tensors["in.t_starts"] + tensors["in.t_ends"]) / 2
    weights = sample_weights(density, intervals)
    opacity, depth = opacity_and_depth(weights, middles)
    rgb = blend_colors(weights, tensors["in.rgb"].flatten(0, 1), torch.arange(density.numel()))
    picture = over_background(rgb, opacity, tensors["in.bg"])
    (gradient,) = torch.autograd.grad(picture.square().sum(), density)
    return {
        "out.weights": weights,
        "out.transmittance": sample_transmittance(density, intervals),
        "out.alpha": sample_alphas(density, intervals),
        "out.opacity": opacity,
        "out.depth": depth,
        "out.comp_rgb_fg": rgb,
        "out.comp_rgb": picture,
        "out.z_variance": depth_variance(weights, middles, depth),
        "out.grad_sigma_of_sum_sq_comp": gradient,
    }


def material_point_light(case: Case, tensors: Tensors) -> dict[str, Any]:
    albedo, positions = to_color(tensors["in.features"]), tensors["in.light_positions"]
    points, normals = tensors["in.positions"], tensors["in.shading_normal"]
    ambient = case["config"]["ambient_ratio"]
    answers: dict[str, Any] = {}
    for mode in ("albedo", "textureless", "diffuse"):
        light = PointLight(positions, ambient, 1 - ambient, mode)
        answers[f"out.{mode}"] = shade(albedo, points, normals, light)
    default = re.fullmatch(r"ambient (\S+), diffuse (\S+)", case["config"]["eval light"])
    assert default is not None
    light = PointLight(positions, float(default[1]), float(default[2]), "diffuse")
    answers["out.eval_default_after_5000"] = shade(albedo, points, normals, light)
    return answers


def regularisers(case: Case, tensors: Tensors) -> dict[str, Any]:
    opacity, normals = tensors["in.opacity"].requires_grad_(), tensors["in.normal"].requires_grad_()
    away = backfacing(tensors["in.weights"].squeeze(-1), normals, tensors["in.t_dirs"])
    surface = Surface(opacity, tensors["in.z_variance"], away)
    config = case["config"]
    weights = Penalties(
        (config["lambda_orient"], config["lambda_orient"], 0.0),
        config["lambda_sparsity"],
        config["lambda_opaque"],
        config["lambda_z_variance"],
    )
    total = surface_penalty(surface, weights, progress=0.0)
    by_normals, by_opacity = torch.autograd.grad(total, (normals, opacity))
    return {
        "out.loss_orient": orientation(away, opacity),
        "out.loss_sparsity": sparsity(opacity),
        "out.loss_opaque": opaqueness(opacity),
        "out.loss_z_variance": depth_spread(surface.depth_variance, opacity),
        "out.total": total,
        "out.grad_normal": by_normals,
        "out.grad_opacity": by_opacity,
    }


def camera_batch(case: Case, tensors: Tensors) -> dict[str, Any]:
    height, width = case["config"]["height"], case["config"]["width"]
    angles = tensors["in.azimuth"], tensors["in.elevation"]
    cameras = orbit_cameras(*angles, tensors["in.camera_distances"], tensors["in.fovy"])
    origins, directions = camera_rays(cameras, height, width)
    reference_xyz = torch.tensor(OURS_XYZ).argsort()
    c2w = cameras.c2w[:, reference_xyz]
    return {
        "out.c2w": c2w,
        "out.camera_positions": c2w[:, :3, 3],
        "out.rays_o": origins[..., reference_xyz[:3]],
        "out.rays_d": directions[..., reference_xyz[:3]],
        "out.mvp_mtx": view_projection(cameras, width / height)[..., reference_xyz],
    }


CASES: dict[str, Adapter] = {
    "implicit_volume": implicit_volume,
    "volume_render": volume_render,
    "material_point_light": material_point_light,
    "regularisers": regularisers,
    "camera_batch": camera_batch,
}
