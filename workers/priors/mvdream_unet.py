"""MVDream's multi-view U-Net on diffusers' blocks, and the names of its tensors in the published checkpoint.

MVDream, arXiv 2308.16512, §3.1: Stable Diffusion's U-Net in which (1) self-attention sees the pixels of all views of
an object together and (2) an embedding of each view's camera is added to that of the time. Cross-attention and
everything else stay per view, so the published tensors have the shapes of Stable Diffusion's.

Shapes: N = groups · V views, view fastest; C, h, w of the latents; L text tokens of D numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MultiViewUNet", "UNetConfig", "attend_across_views", "unet_names"]

_WITHOUT_EFFECT = frozenset(
    {
        "image_size",
        "use_checkpoint",
        "use_fp16",
        "use_bf16",
        "legacy",
        "dropout",
        "num_heads_upsample",
        "ip_weight",
    }
)
"""Published settings that do not change what the trained network computes."""
_ONLY: dict[str, tuple[object, ...]] = {
    "use_spatial_transformer": (True,),
    "transformer_depth": (1,),
    "conv_resample": (True,),
    "dims": (2,),
    "use_scale_shift_norm": (False,),
    "resblock_updown": (False,),
    "disable_middle_self_attn": (False,),
    "use_new_attention_order": (False,),
    **dict.fromkeys(("num_classes", "n_embed", "disable_self_attentions", "adm_in_channels"), (None,)),
    "num_attention_blocks": (None,),
    "ip_dim": (0,),
}
"""Published settings of which this code knows these values alone."""
_UNLESS_GIVEN = {
    "num_heads": -1,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
    "camera_dim": None,
}
"""What the published code takes where a configuration is silent."""


@dataclass(frozen=True)
class UNetConfig:
    """The network's sizes in the words of the published configuration; by default those of `sd-v2.1-base-4view`."""

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int | tuple[int, ...] = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    """Downsampling factors at which there is attention."""
    num_head_channels: int = 64
    """Width of a head; -1: every layer has `num_heads` heads."""
    num_heads: int = -1
    context_dim: int = 1024
    """D, the width of a text token."""
    use_linear_in_transformer: bool = True
    camera_dim: int | None = 16

    @classmethod
    def from_published(cls, settings: Mapping[str, Any]) -> UNetConfig:
        """Read the `unet_config` of a published configuration; raises ValueError on what this code cannot build."""
        settings = {**_UNLESS_GIVEN, **settings}
        ours = {field.name for field in fields(cls)}
        for name, value in settings.items():
            if name in ours or name in _WITHOUT_EFFECT or name.startswith("_"):
                continue
            if name not in _ONLY or value not in _ONLY[name]:
                raise ValueError(f"the U-Net's setting {name!r} = {value!r} is not supported")
        values: dict[str, Any] = {name: settings[name] for name in ours & set(settings)}
        if values["num_head_channels"] != -1:
            values["num_heads"] = -1
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values)

    def __post_init__(self) -> None:
        if self.channel_mult[0] != 1:
            raise ValueError(f"the U-Net's channel_mult must start with 1, not {self.channel_mult[0]}")
        if (self.num_head_channels == -1) == (self.num_heads == -1):
            raise ValueError("the U-Net needs either num_head_channels or num_heads, the other one being -1")
        if len(self.res_blocks) != len(self.channel_mult):
            raise ValueError(
                f"the U-Net has {len(self.channel_mult)} levels, but num_res_blocks names {len(self.res_blocks)}"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    @property
    def res_blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level, on the way down."""
        if isinstance(self.num_res_blocks, int):
            return (self.num_res_blocks,) * len(self.channel_mult)
        return self.num_res_blocks

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        if self.num_head_channels == -1:
            return (self.num_heads,) * len(self.channel_mult)
        return tuple(channels // self.num_head_channels for channels in self.channels)

    def attends(self, level: int) -> bool:
        """Tell whether `level`, counted from the finest, has attention."""
        return 2**level in self.attention_resolutions


class JointViewAttention(AttnProcessor2_0):
    """Attention in which the tokens of all views of a group see each other; cross-attention stays per view."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        num_views: int = 1,
    ) -> Tensor:
        """Attend from (N, tokens, channels); to the views' own tokens unless `encoder_hidden_states` are given."""
        if encoder_hidden_states is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        joint = hidden_states.unflatten(0, (-1, num_views)).flatten(1, 2)
        return super().__call__(attn, joint, None, attention_mask, temb).reshape(hidden_states.shape)


def attend_across_views(network: nn.Module) -> None:
    """Let every attention layer of diffusers in `network` take `num_views` as a cross-attention argument."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(JointViewAttention())  # type: ignore[no-untyped-call, arg-type]


class MultiViewUNet(nn.Module):
    """Predict the noise in the latents of all views of an object at once."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        levels = range(len(config.channels))
        width = 4 * config.model_channels
        self.unet = UNet2DConditionModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.channels,
            layers_per_block=config.res_blocks,
            down_block_types=[f"{'CrossAttn' * config.attends(i)}DownBlock2D" for i in levels],
            up_block_types=[f"{'CrossAttn' * config.attends(i)}UpBlock2D" for i in reversed(levels)],
            # diffusers calls the number of heads so, for the sake of its oldest checkpoints
            attention_head_dim=config.heads,
            cross_attention_dim=config.context_dim,
            use_linear_projection=config.use_linear_in_transformer,
            class_embed_type="identity",
        )
        attend_across_views(self.unet)
        self.camera_embed: nn.Sequential | None = None
        if config.camera_dim is not None:
            self.camera_embed = nn.Sequential(
                nn.Linear(config.camera_dim, width), nn.SiLU(), nn.Linear(width, width)
            )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.unet.dtype

    def forward(
        self, latents: Tensor, t: Tensor, context: Tensor, camera: Tensor | None, num_views: int
    ) -> Tensor:
        """ε̂ (N, C, h, w) for noisy latents of that shape, t (N,), text (N, L, D) and camera (N, camera_dim) or None."""
        given = latents.dtype
        latents, context = latents.to(self.dtype), context.to(self.dtype)
        if camera is not None and self.camera_embed is not None:
            embedding = self.camera_embed(camera.to(self.dtype))
        else:
            embedding = latents.new_zeros(1, 4 * self.config.model_channels)
        noise: Tensor = self.unet(
            latents,
            t,
            context,
            class_labels=embedding,
            cross_attention_kwargs={"num_views": num_views},
            return_dict=False,
        )[0]
        return noise.to(given)


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_names(network: MultiViewUNet) -> dict[str, str]:
    """Map the published name of each tensor of the U-Net to its name here, one to one."""
    blocks = _block_names(network.config)
    names = {}
    for ours in network.state_dict():
        block = next(prefix for prefix in blocks if ours.startswith(prefix + "."))
        rest = ours.removeprefix(block + ".")
        if ".resnets." in block:
            layer, _, kind = rest.partition(".")
            rest = f"{_RESNET[layer]}.{kind}"
        names[f"{blocks[block]}.{rest}"] = ours
    return names


def _block_names(config: UNetConfig) -> dict[str, str]:
    """From the beginnings of our names to those of the published names, which number all blocks of a way in a row."""
    names = {
        "camera_embed": "camera_embed",
        "unet.time_embedding.linear_1": "time_embed.0",
        "unet.time_embedding.linear_2": "time_embed.2",
        "unet.conv_in": "input_blocks.0.0",
        "unet.mid_block.resnets.0": "middle_block.0",
        "unet.mid_block.attentions.0": "middle_block.1",
        "unet.mid_block.resnets.1": "middle_block.2",
        "unet.conv_norm_out": "out.0",
        "unet.conv_out": "out.2",
    }
    last = len(config.channels) - 1
    index = 1
    for level, num_blocks in enumerate(config.res_blocks):
        for block in range(num_blocks):
            names[f"unet.down_blocks.{level}.resnets.{block}"] = f"input_blocks.{index}.0"
            names[f"unet.down_blocks.{level}.attentions.{block}"] = f"input_blocks.{index}.1"
            index += 1
        if level < last:
            names[f"unet.down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for up, level in enumerate(range(last, -1, -1)):
        for block in range(config.res_blocks[level] + 1):
            names[f"unet.up_blocks.{up}.resnets.{block}"] = f"output_blocks.{index}.0"
            names[f"unet.up_blocks.{up}.attentions.{block}"] = f"output_blocks.{index}.1"
            index += 1
        after = 2 if config.attends(level) else 1
        names[f"unet.up_blocks.{up}.upsamplers.0.conv"] = f"output_blocks.{index - 1}.{after}.conv"
    return names
