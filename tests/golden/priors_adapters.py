"""Golden cases of the priors: see `tests/golden/adapters.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from tests.golden.compare import Case, Tensors, read_case
from workers.cameras import orbit_cameras
from workers.diffusion import add_noise, alpha_sigma, linear_betas, linear_schedule, x0_from_noise
from workers.priors.ddim import ddim_sample, ddim_tables
from workers.priors.mvdream_cameras import normalized, opengl_to_blender
from workers.priors.mvdream_unet import MultiViewUNet, UNetConfig, attend_across_views, unet_names
from workers.priors.stable_diffusion import x0_from_velocity
from workers.priors.vae import PictureCoder, VAEConfig, vae_names
from workers.priors.view_prompts import DIRECTIONS, direction_index, with_direction
from workers.priors.weight_files import Target, checked_tensors, fill, taken

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tests.golden.adapters import Adapter

__all__ = ["CASES"]


def mvdream_camera(case: Case, tensors: Tensors) -> Tensors:
    config, out = case["config"], {}
    for i, call in enumerate(config["get_camera_calls"]):
        num = call["num_frames"]
        azimuth_deg = call["azimuth_start"] + torch.arange(num) * (call["azimuth_span"] / num)
        c2w = orbit_cameras(azimuth_deg, torch.tensor(float(call["elevation"])), 1.0, 40.0).c2w
        out[f"out.get_camera.{i}.opengl"] = c2w.flatten(1)
        out[f"out.get_camera.{i}.blender"] = opengl_to_blender(c2w).flatten(1)
    for i, (elevation_deg, azimuth_deg) in enumerate(config["c2w_opengl_elev_azim_deg"]):
        azimuth, elevation = torch.tensor([azimuth_deg, elevation_deg], dtype=torch.float64)
        out[f"out.c2w_opengl.{i}"] = orbit_cameras(azimuth, elevation, 1.0, 40.0).c2w
    return {**out, "out.normalize": normalized(tensors["in.normalize"]).flatten(1)}


def mvdream_schedule(case: Case, tensors: Tensors) -> Tensors:
    config = case["config"]
    sizes = config["timesteps"], config["linear_start"], config["linear_end"]
    schedule = linear_schedule(*sizes)
    every, one, zero = torch.arange(sizes[0]), torch.ones(sizes[0]), torch.zeros(sizes[0])
    alpha, sigma = alpha_sigma(schedule, every, one)
    out = {
        "out.betas": linear_betas(*sizes),
        "out.alphas_cumprod": schedule.alphas_cumprod,
        "out.alphas_cumprod_prev": torch.cat([one[:1], schedule.alphas_cumprod[:-1]]),
        "out.sqrt_alphas_cumprod": alpha,
        "out.sqrt_one_minus_alphas_cumprod": sigma,
        # x̂₀ is linear: its coefficients are what it makes of (1, 0) and of (0, −1)
        "out.sqrt_recip_alphas_cumprod": x0_from_noise(one, zero, every, schedule),
        "out.sqrt_recipm1_alphas_cumprod": x0_from_noise(zero, -one, every, schedule),
        "out.t_emb": _time_embedding(tensors["in.t_emb"], config["timestep_embedding_dim"]),
    }
    x0, noise, predicted = tensors["in.x0"], tensors["in.noise"], tensors["in.eps"]
    for time in config["q_sample_t"]:
        t = torch.full((len(x0),), time)
        noisy = add_noise(x0, noise, t, schedule)
        out[f"out.q_sample.t{time}"] = noisy
        out[f"out.x0_from_eps.t{time}"] = x0_from_noise(noisy, predicted, t, schedule)
        # v = α ε − σ x₀ has the form of x̂₀ = α x_t − σ v̂
        out[f"out.get_v.t{time}"] = x0_from_velocity(noise, x0, t, schedule)
    for name in (name for name in tensors if name.startswith("out.ddim_")):
        table, steps, *eta = name.removeprefix("out.ddim_").split(".", 2)
        tables = ddim_tables(schedule, int(steps[1:]), float(eta[0].removeprefix("eta")) if eta else 0.0)
        ours = {"timesteps": "times", "alphas_prev": "alphas_before"}.get(table, table)
        out[name] = getattr(tables, ours)
    return out


def _time_embedding(t: Tensor, width: int) -> Tensor:
    network = MultiViewUNet(UNetConfig(model_channels=width, channel_mult=(1,), num_res_blocks=1))
    embedding: Tensor = network.unet.time_proj(t)
    return embedding


def mvdream_transformer3d(case: Case, tensors: Tensors) -> Tensors:
    config = case["config"]
    network = Transformer2DModel(
        num_attention_heads=config["n_heads"],
        attention_head_dim=config["d_head"],
        in_channels=config["in_channels"],
        num_layers=config["depth"],
        cross_attention_dim=config["context_dim"],
        use_linear_projection=config["use_linear"],
    )
    attend_across_views(network)
    _load(network, tensors, {name: name for name in network.state_dict()})
    out = {}
    for name in (name for name in tensors if name.startswith("out.num_frames")):
        views = {"num_views": int(name.removeprefix("out.num_frames"))}
        out[name] = network(
            tensors["in.x"], tensors["in.context"], cross_attention_kwargs=views, return_dict=False
        )[0]
    return out


def mvdream_unet(case: Case, tensors: Tensors) -> Tensors:
    network = _unet(case, tensors)
    inputs, camera = (tensors["in.x"], tensors["in.t"], tensors["in.context"]), tensors.get("in.camera")
    num_views = int(case["call"].partition("num_frames=")[2].partition(")")[0])
    calls: dict[str, tuple[Tensor | None, int]] = {"": (camera, num_views), "_no_camera": (None, num_views)}
    out = {}
    for name in (name for name in tensors if name.startswith("out.eps")):
        kind, _, views = name.removeprefix("out.eps").partition("_num_frames")
        out[name] = network(*inputs, *((camera, int(views)) if views else calls[kind]))
    return out


def mvdream_ddim(case: Case, tensors: Tensors) -> Tensors:
    config = case["config"]
    network = _unet(*read_case(case["folder"], "mvdream_unet"))
    text = torch.cat([tensors["in.context_cond"], tensors["in.context_uncond"]])
    camera, num_views = tensors["in.camera"].repeat(2, 1), len(tensors["in.camera"])

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with_prompt, without = network(x.repeat(2, 1, 1, 1), t.repeat(2), text, camera, num_views).chunk(2)
        return with_prompt, without

    sample = ddim_sample(
        denoise,
        tensors["in.x_T"],
        linear_schedule(),
        steps=config["steps"],
        guidance_scale=config["cfg_scale"],
        eta=config["eta"],
        generator=torch.Generator().manual_seed(config.get("seed", 0)),
    )
    return {"out.sample": sample}


def mvdream_vae(case: Case, tensors: Tensors) -> Tensors:
    config = case["config"]
    sizes = {name: config["ddconfig"][name] for name in ("ch", "num_res_blocks", "z_channels")}
    levels = {"ch_mult": tuple(config["ddconfig"]["ch_mult"]), "scale_factor": config["scale_factor"]}
    coder = PictureCoder.of_published(VAEConfig(**sizes, **levels))
    _load(coder, tensors, vae_names(coder))
    pictures, noise = tensors["in.image_-1_1"], tensors["in.noise"]
    posterior = coder.posterior(pictures)
    return {
        "out.mean": posterior.mean,
        "out.logvar_clamped": posterior.logvar,
        "out.sample": posterior.sample(noise),
        "out.latent_scaled": coder.encode(pictures, noise),
        "out.decode_of_mean": coder.decode(coder.encode(pictures)),
    }


def view_prompts(case: Case, tensors: Tensors) -> dict[str, object]:
    config = case["config"]
    thresholds = [config[f"{name}_threshold"] for name in ("front", "back", "overhead")]
    prefix = "prompts_vd_for_"
    told = {
        key: [with_direction(key.removeprefix(prefix).strip("'"), direction) for direction in DIRECTIONS]
        for key in case
        if key.startswith(prefix)
    }
    return {
        "out.direction_idx": direction_index(tensors["in.elevation"], tensors["in.azimuth"], *thresholds),
        "direction_order": list(DIRECTIONS),
        **told,
    }


def _unet(case: Case, tensors: Tensors) -> MultiViewUNet:
    network = MultiViewUNet(UNetConfig.from_published(case["config"]))
    _load(network, tensors, unet_names(network))
    return network


def _load(network: nn.Module, tensors: Tensors, names: dict[str, str]) -> None:
    found = checked_tensors(network, taken(tensors, "sd."), names, "the golden case")
    fill(network, found, Target.of("cpu"))


CASES: dict[str, Adapter] = {
    "mvdream_camera": mvdream_camera,
    "mvdream_ddim": mvdream_ddim,
    "mvdream_schedule": mvdream_schedule,
    "mvdream_transformer3d": mvdream_transformer3d,
    "mvdream_unet": mvdream_unet,
    "mvdream_vae": mvdream_vae,
    "view_prompts": view_prompts,
}
