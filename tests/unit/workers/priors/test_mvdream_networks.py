from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from tests.unit.workers.priors.tiny_priors import TINY
from workers.priors.mvdream_unet import MultiViewUNet, UNetConfig, unet_names
from workers.priors.vae import PictureCoder, VAEConfig, vae_names


def test_the_published_unet_has_690_tensors_and_868_million_parameters_each_named_once() -> None:
    with torch.device("meta"):
        unet = MultiViewUNet(UNetConfig())
    names = unet_names(unet)
    assert sum(tensor.numel() for tensor in unet.parameters()) == 867_572_164
    assert len(names) == len(set(names.values())) == 690
    assert set(names.values()) == set(unet.state_dict())
    # one of each kind of name, from the published list of blocks
    assert {
        "time_embed.2.weight",
        "camera_embed.0.weight",
        "input_blocks.3.0.op.weight",
        "input_blocks.4.0.skip_connection.weight",
        "input_blocks.8.1.transformer_blocks.0.ff.net.0.proj.bias",
        "middle_block.1.transformer_blocks.0.attn1.to_out.0.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.bias",
        "output_blocks.11.1.proj_out.weight",
        "out.2.bias",
    } <= set(names)


def test_the_published_autoencoder_has_248_tensors_and_84_million_parameters_each_named_once() -> None:
    with torch.device("meta"):
        coder = PictureCoder.of_published(VAEConfig())
    names = vae_names(coder)
    assert sum(tensor.numel() for tensor in coder.parameters()) == 83_653_863
    assert len(names) == len(set(names.values())) == 248
    assert set(names.values()) == set(coder.state_dict())
    assert {
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.2.downsample.conv.bias",
        "decoder.up.3.upsample.conv.weight",
        "decoder.mid.attn_1.proj_out.bias",
        "post_quant_conv.weight",
    } <= set(names)


@pytest.mark.parametrize("num_views", [1, 4])
def test_a_view_depends_on_the_others_exactly_when_they_are_denoised_together(num_views: int) -> None:
    torch.manual_seed(0)
    unet = MultiViewUNet(TINY.unet).eval()
    latents, context, camera = torch.randn(4, 4, 8, 8), torch.randn(4, 5, 32), torch.randn(4, 16)
    t = torch.full((4,), 500)
    changed = latents.clone()
    changed[3] += 1
    with torch.no_grad():
        before = unet(latents, t, context, camera, num_views)
        after = unet(changed, t, context, camera, num_views)
    assert torch.equal(before[0], after[0]) is (num_views == 1)


def test_without_camera_and_with_one_view_it_is_stable_diffusions_unet() -> None:
    torch.manual_seed(0)
    unet = MultiViewUNet(TINY.unet).eval()
    plain = UNet2DConditionModel(**{**unet.unet.config, "class_embed_type": None}).eval()
    plain.load_state_dict(unet.unet.state_dict())
    latents, context, t = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32), torch.tensor([3, 900])
    with torch.no_grad():
        assert torch.equal(
            unet(latents, t, context, None, 1), plain(latents, t, context, return_dict=False)[0]
        )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_scale_shift_norm": True}, "use_scale_shift_norm"),
        ({"resnet_flavor": "new"}, "resnet_flavor"),
        ({"channel_mult": [2, 4]}, "channel_mult"),
        ({"num_res_blocks": [1, 2, 3]}, "num_res_blocks"),
        ({"num_head_channels": -1}, "num_head_channels"),
    ],
)
def test_a_unet_that_cannot_be_built_is_refused_by_the_name_of_its_setting(
    settings: dict[str, object], named: str
) -> None:
    published = {"model_channels": 32, "channel_mult": [1, 2], "num_head_channels": 16, "context_dim": 8}
    with pytest.raises(ValueError, match=named):
        UNetConfig.from_published({**published, **settings})


def test_the_sd_1_5_variant_has_eight_heads_everywhere_and_convolutions_as_projections() -> None:
    published = {"model_channels": 64, "channel_mult": [1, 2], "num_heads": 8, "context_dim": 48}
    config = UNetConfig.from_published(published)
    assert config.heads == (8, 8)
    assert not config.use_linear_in_transformer
    with torch.device("meta"):
        unet = MultiViewUNet(config)
    proj_in = unet_names(unet)["middle_block.1.proj_in.weight"]
    assert unet.state_dict()[proj_in].shape == (128, 128, 1, 1)


def test_an_autoencoder_that_cannot_be_built_is_refused_by_the_name_of_its_setting() -> None:
    with pytest.raises(ValueError, match="ch_mult must start with 1, not 2"):
        VAEConfig(ch_mult=(2, 4))
