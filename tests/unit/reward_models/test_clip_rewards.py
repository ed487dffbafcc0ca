"""HPSv2, PickScore, the CLIP score and the aesthetic predictor: conventions, gradients, both layouts of files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from reward_models.checkpoints import Checkpoint
from reward_models.clip import VIT_B_32, VIT_H_14, VIT_L_14, ClipConfig, ClipTrunk
from reward_models.clip_rewards import Aesthetic, ClipReward, ClipScore, HPSv2, PickScore
from reward_models.linear_head import LinearHead
from reward_models.preprocess import picture_tensor
from reward_models.tokens import ClipTokens
from tests.unit.reward_models.small_networks import CLIP, make_clip, make_clip_tokens, pictures

PROMPTS = ["a cat", "red"]


def make(kind: type[ClipReward]) -> ClipReward:
    if kind is Aesthetic:
        torch.manual_seed(2)
        return Aesthetic(make_clip(), wide_head()).eval()
    return kind(make_clip(), make_clip_tokens()).eval()


def wide_head() -> LinearHead:
    """A head whose ratings differ by more than rounding."""
    head = LinearHead(CLIP.embedding).eval().requires_grad_(False)
    for parameter in head.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    return head


def values(reward: ClipReward, images: Tensor, prompts: list[str] = PROMPTS) -> Tensor:
    return reward.score_batch(images, prompts, torch.zeros(len(images), dtype=torch.bool))[0]


@pytest.mark.parametrize("kind", [HPSv2, PickScore, ClipScore, Aesthetic])
def test_each_view_is_scored_alone(kind: type[ClipReward]) -> None:
    reward, images = make(kind), pictures(2, 3)
    together = values(reward, images)
    assert together.shape == (2, 3)
    torch.testing.assert_close(values(reward, images[1:, 2:], PROMPTS[1:]), together[1:, 2:])
    assert together.unique().numel() == 6


@pytest.mark.parametrize("kind", [HPSv2, PickScore, ClipScore, Aesthetic])
def test_gradient_is_that_of_the_scores(kind: type[ClipReward]) -> None:
    reward, images = make(kind).double(), pictures(2, 2).double()
    _, gradient = reward.score_batch(images, PROMPTS, torch.tensor([False, True]))
    assert gradient[0].abs().max() == 0
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    ahead, behind = (reward.score(images + sign * step * direction, PROMPTS)[1].sum() for sign in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-5)


def test_pick_score_is_the_scaled_cosine_of_hps() -> None:
    images = pictures(2, 2)
    clip = make_clip()
    cosines = values(HPSv2(clip, make_clip_tokens()), images)
    assert cosines.abs().max() <= 1
    torch.testing.assert_close(values(PickScore(clip, make_clip_tokens()), images), cosines * clip.scale)


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", Tensor.mean), ("max", Tensor.amax), ("min", Tensor.amin)]
)
def test_clip_score_scales_clamps_and_reduces(how: str, expected: object) -> None:
    images, clip, tokens = pictures(2, 3), make_clip(), make_clip_tokens()
    cosines = values(HPSv2(clip, tokens), images)
    reduced = values(ClipScore(clip, tokens, scale=5.0, clamp=True, reduce=how), images)
    want = expected((5.0 * cosines).clamp(min=0), 1)[:, None]
    torch.testing.assert_close(reduced, want)
    assert torch.equal(values(ClipScore(clip, tokens, scale=1.0, reduce="first"), images), cosines[:, :1])


def test_clip_score_refuses_a_scale_that_turns_it_round() -> None:
    with pytest.raises(ValueError, match="must be above 0, so that higher is better, but is -1"):
        ClipScore(make_clip(), scale=-1.0)


def test_aesthetic_ignores_the_prompt_and_uses_the_whole_head() -> None:
    clip, head = make_clip(), wide_head()
    reward, images = Aesthetic(clip, head), pictures(2, 2)
    assert torch.equal(values(reward, images, ["a cat", "red"]), values(reward, images, ["red", "a cat"]))
    unit = torch.nn.functional.normalize(torch.randn(5, CLIP.embedding), dim=-1)
    ratings = head(unit)
    torch.testing.assert_close(reward.affine(unit), ratings, rtol=0, atol=1e-5 * float(ratings.abs().max()))


def test_cards_declare_what_a_caller_must_know() -> None:
    clip, tokens = make_clip(), make_clip_tokens()
    versions = [HPSv2(clip, tokens, version=version).card for version in ("2.0", "2.1")]
    assert [card.name for card in versions] == ["hpsv2", "hpsv2.1"]
    assert versions[1].value_range == (-1, 1)
    assert ClipScore(clip, tokens, scale=2.5, clamp=True).card.value_range == (0, 2.5)
    low, high = PickScore(clip, tokens).card.value_range or (0, 0)
    assert high == -low == pytest.approx(1 / 0.07, rel=1e-3)  # transformers' start value
    aesthetic = make(Aesthetic).card
    assert (aesthetic.uses_prompt, aesthetic.prompt_tokens) == (False, None)
    assert {card.license for card in versions} == {"Apache-2.0"}


def test_only_hps_resizes_saved_pictures_as_tensors() -> None:
    image = (pictures(1, 1) * 255).round() / 255
    saved = Image.fromarray((image[0, 0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
    assert torch.equal(picture_tensor(saved), image[0, 0])
    hps, pick = make(HPSv2), make(PickScore)
    torch.testing.assert_close(hps.score_pictures([[saved]], ["red"]), values(hps, image, ["red"]))
    assert not torch.allclose(
        pick.score_pictures([[saved]], ["red"]), values(pick, image, ["red"]), rtol=1e-6
    )


@pytest.mark.parametrize("names", ["open_clip", "transformers"])
def test_a_trunk_comes_back_from_both_layouts(names: str) -> None:
    clip = make_clip()
    state = clip.published_state(names)
    extra = {"text_model.embeddings.position_ids": torch.arange(12)} if names == "transformers" else {}
    loaded = ClipTrunk.from_checkpoint(Checkpoint("clip.pt", {**state, **extra}), CLIP)
    for name, tensor in clip.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    images = pictures(1, 2)
    tokens = make_clip_tokens()
    assert torch.equal(
        values(HPSv2(loaded, tokens), images, ["cat"]), values(HPSv2(clip, tokens), images, ["cat"])
    )


def test_open_clip_names_are_the_published_ones() -> None:
    state = make_clip().published_state()
    assert state["visual.transformer.resblocks.1.attn.in_proj_weight"].shape == (48, 16)
    assert state["visual.proj"].shape == (16, 12)
    assert state["text_projection"].shape == (16, 12)
    assert {"ln_final.weight", "visual.ln_pre.bias", "token_embedding.weight", "logit_scale"} <= set(state)


@pytest.mark.parametrize(
    ("config", "weights", "tensors"),
    [(VIT_H_14, 986_109_441, 686), (VIT_L_14, 427_616_513, 446), (VIT_B_32, 151_277_313, 302)],
)
def test_the_published_sizes_are_the_published_numbers_of_weights(
    config: ClipConfig, weights: int, tensors: int
) -> None:
    with torch.device("meta"):
        clip = ClipTrunk(config)
    assert sum(parameter.numel() for parameter in clip.parameters()) == weights
    assert len(clip.published_state()) == tensors


def test_a_file_that_does_not_fit_is_refused_by_name_and_key() -> None:
    state = make_clip().published_state()
    missing = {name: tensor for name, tensor in state.items() if name != "visual.proj"}
    with pytest.raises(ValueError, match=r"clip\.pt does not fit.*misses 1 tensor, first visual\.proj"):
        ClipTrunk.from_checkpoint(Checkpoint("clip.pt", missing), CLIP)
    key = "transformer.resblocks.0.attn.in_proj_bias"
    with pytest.raises(ValueError, match=rf"{key}, which is \(7,\) where \(48,\) is expected"):
        ClipTrunk.from_checkpoint(Checkpoint("clip.pt", {**state, key: torch.ones(7)}), CLIP)
    relu = {f"layers.{i}.{kind}": torch.ones(1) for i in (0, 3, 6, 9, 11) for kind in ("weight", "bias")}
    with pytest.raises(
        ValueError, match=r"does not fit.*misses 6 tensors.*unknown 6 tensors, first layers\.3"
    ):
        LinearHead.from_checkpoint(Checkpoint("relu.pth", relu), 12)


def test_a_tokenizer_of_another_size_is_refused() -> None:
    with pytest.raises(
        ValueError, match="this CLIP reads 12 of 518 tokens, but its tokenizer makes 77 of 49408"
    ):
        HPSv2(make_clip(), ClipTokens())


def test_quick_gelu_is_another_network() -> None:
    exact = make_clip()
    quick = ClipTrunk.from_checkpoint(
        Checkpoint("q", exact.published_state()), replace(CLIP, quick_gelu=True)
    )
    pixels = torch.randn(1, 3, 16, 16)
    assert not torch.allclose(exact.image_features(pixels), quick.image_features(pixels), rtol=1e-4)
