"""Stable Diffusion's KL autoencoder on diffusers' `AutoencoderKL`, and the names of its tensors as published.

"High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752, §3.1: an encoder gives mean and log
variance of a Gaussian over latents, here scaled to about unit variance; a decoder turns latents into a picture.

Shapes: N pictures, C = 4 latent channels, h = H / 8, w = W / 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

__all__ = ["LatentPosterior", "PictureCoder", "VAEConfig", "vae_names"]


@dataclass(frozen=True)
class VAEConfig:
    """Sizes in the words of the published configuration; by default those of Stable Diffusion."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    scale_factor: float = 0.18215

    def __post_init__(self) -> None:
        if self.ch_mult[0] != 1:
            raise ValueError(f"the VAE's ch_mult must start with 1, not {self.ch_mult[0]}")


class LatentPosterior(NamedTuple):
    """The encoder's Gaussian over latents, not yet scaled."""

    mean: Tensor
    """(N, C, h, w)."""
    logvar: Tensor
    """(N, C, h, w) logarithm of the variance, clamped to [−30, 20]."""

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + std · noise for noise ~ N(0, 1) like `mean`; without noise, the mean."""
        return self.mean if noise is None else self.mean + (0.5 * self.logvar).exp() * noise


class PictureCoder(nn.Module):
    """Encode pictures as latents and decode them, in the type of the weights; answers are float32."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    @classmethod
    def of_published(cls, config: VAEConfig) -> PictureCoder:
        """Build the autoencoder of a published configuration."""
        channels = [config.ch * mult for mult in config.ch_mult]
        return cls(
            AutoencoderKL(
                block_out_channels=channels,
                layers_per_block=config.num_res_blocks,
                latent_channels=config.z_channels,
                down_block_types=["DownEncoderBlock2D"] * len(channels),
                up_block_types=["UpDecoderBlock2D"] * len(channels),
                scaling_factor=config.scale_factor,
            )
        )

    @property
    def num_channels(self) -> int:
        """C of the latents."""
        return int(self.vae.config["latent_channels"])

    @property
    def px_per_latent(self) -> int:
        """H / h: how many pixels a latent spans along each axis."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    def posterior(self, pictures: Tensor) -> LatentPosterior:
        """Encode pictures (N, 3, H, W) in [−1, 1]; differentiable to them."""
        coded = self.vae.encode(pictures.to(self.vae.dtype)).latent_dist
        return LatentPosterior(coded.mean.float(), coded.logvar.float())

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents (N, C, h, w) of pictures (N, 3, H, W) in [−1, 1]: a sample by `noise`, or the mean."""
        latents: Tensor = self.posterior(pictures).sample(noise) * self.vae.config["scaling_factor"]
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) of scaled latents, about in [−1, 1]; differentiable to the latents."""
        unscaled = (latents / self.vae.config["scaling_factor"]).to(self.vae.dtype)
        pictures: Tensor = self.vae.decode(unscaled, return_dict=False)[0]
        return pictures.float()


_LAYERS = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def vae_names(network: PictureCoder) -> dict[str, str]:
    """Map the published name of each tensor of the autoencoder to its name here, one to one."""
    blocks = _block_names(network.vae)
    names = {}
    for ours in network.state_dict():
        block = next(prefix for prefix in blocks if ours.startswith(prefix + "."))
        layer, _, kind = ours.removeprefix(block + ".").rpartition(".")
        layer = _LAYERS.get(layer, layer)
        names[".".join(part for part in (blocks[block], layer, kind) if part)] = ours
    return names


def _block_names(vae: AutoencoderKL) -> dict[str, str]:
    """From the beginnings of our names to those of the published names, which number the decoder's levels backwards."""
    names = {f"vae.{conv}": conv for conv in ("quant_conv", "post_quant_conv")}
    for way in ("encoder", "decoder"):
        names[f"vae.{way}.conv_in"] = f"{way}.conv_in"
        names[f"vae.{way}.conv_norm_out"] = f"{way}.norm_out"
        names[f"vae.{way}.conv_out"] = f"{way}.conv_out"
        names[f"vae.{way}.mid_block.resnets.0"] = f"{way}.mid.block_1"
        names[f"vae.{way}.mid_block.attentions.0"] = f"{way}.mid.attn_1"
        names[f"vae.{way}.mid_block.resnets.1"] = f"{way}.mid.block_2"
    last = len(vae.config["block_out_channels"]) - 1
    for level in range(last + 1):
        up = last - level
        names[f"vae.encoder.down_blocks.{level}.downsamplers.0"] = f"encoder.down.{level}.downsample"
        names[f"vae.decoder.up_blocks.{up}.upsamplers.0"] = f"decoder.up.{level}.upsample"
        for block in range(vae.config["layers_per_block"] + 1):
            names[f"vae.encoder.down_blocks.{level}.resnets.{block}"] = f"encoder.down.{level}.block.{block}"
            names[f"vae.decoder.up_blocks.{up}.resnets.{block}"] = f"decoder.up.{level}.block.{block}"
    return names
