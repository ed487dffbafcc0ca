"""ImageReward and Reward3D on their common trunk: shapes, gradients, prompts, published files in and out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from PIL import Image

from reward_models.blip import BLIP_LARGE, BlipReward
from reward_models.checkpoints import Checkpoint, read_checkpoint
from reward_models.contracts import VIEW_SUFFIXES, ViewPrompt
from reward_models.image_reward import ImageReward
from reward_models.reward3d import Reward3DCrossView, Reward3DScorer
from reward_models.tokens import BertTokens
from tests.unit.reward_models.small_networks import BLIP, WORDS, make_blip_reward, pictures

if TYPE_CHECKING:
    from pathlib import Path

KINDS = [ImageReward, Reward3DScorer, Reward3DCrossView]
NONE = torch.zeros(2, dtype=torch.bool)


def values(reward: BlipReward, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return reward.score_batch(images, prompts, torch.zeros(len(images), dtype=torch.bool))[0]


@pytest.mark.parametrize(
    ("kind", "shape"), [(ImageReward, (2, 4)), (Reward3DScorer, (2, 1)), (Reward3DCrossView, (2, 1))]
)
def test_scores_each_view_or_the_object(kind: type[BlipReward], shape: tuple[int, int]) -> None:
    assert values(make_blip_reward(kind), pictures(2, 4), ["a cat", "red"]).shape == shape


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_influence_each_other(kind: type[BlipReward]) -> None:
    reward, images = make_blip_reward(kind), pictures(3, 4)
    together = values(reward, images, ["a cat", "red", "a red cat, view"])
    torch.testing.assert_close(values(reward, images[1:2], ["red"]), together[1:2])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_scores(kind: type[BlipReward]) -> None:
    reward = make_blip_reward(kind).double()
    images = pictures(2, 4).double()
    _, gradient = reward.score_batch(images, ["a cat", "red"], torch.tensor([True, False]))
    assert gradient[1].abs().max() == 0
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    ahead, behind = (
        reward.score(images + sign * step * direction, ["a cat", "red"])[0].sum() for sign in (1, -1)
    )
    slope = float((gradient * direction).sum())
    assert slope == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-5)
    assert slope != 0


def test_scorer_heeds_the_order_of_views_and_cross_view_does_not() -> None:
    images = pictures(1, 4)
    turned = images.roll(1, 1)
    scorer, cross_view = make_blip_reward(Reward3DScorer), make_blip_reward(Reward3DCrossView)
    assert not torch.allclose(values(scorer, images, ["a cat"]), values(scorer, turned, ["a cat"]), rtol=1e-6)
    torch.testing.assert_close(values(cross_view, images, ["a cat"]), values(cross_view, turned, ["a cat"]))


def test_reward3d_reads_each_view_with_its_own_text() -> None:
    reward, images = make_blip_reward(Reward3DScorer), pictures(1, 4)
    sides = [f"a cat{VIEW_SUFFIXES[side]}" for side in ("front", "side", "back", "side")]
    texts = reward.read([ViewPrompt("a cat", sides)], 4)
    assert texts.of_view.tolist() == [[0, 1, 2, 1]]
    assert len(texts.ids) == 3
    plain, told = values(reward, images, ["a cat"]), values(reward, images, [ViewPrompt("a cat", sides)])
    assert not torch.allclose(plain, told, rtol=1e-6)
    torch.testing.assert_close(plain, values(reward, images, [ViewPrompt("a cat", ["a cat"] * 4)]))


def test_image_reward_reads_only_the_prompt_itself_of_a_view_prompt() -> None:
    reward, images = make_blip_reward(ImageReward), pictures(1, 2)
    told = ViewPrompt("a cat", ["red", "red"])
    assert torch.equal(values(reward, images, [told]), values(reward, images, ["a cat"]))


def test_view_prompt_needs_a_text_for_each_view() -> None:
    with pytest.raises(
        ValueError, match="got 4 views of 'a cat', but texts for 2: give as many texts as views"
    ):
        values(make_blip_reward(Reward3DScorer), pictures(1, 4), [ViewPrompt("a cat", ["red", "red"])])


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (pictures(2, 3), "'reward3d' wants 4 views of each object, evenly spaced around it, but got 3"),
        (pictures(2, 4) * 255, r"finite images in \[0, 1\], but got values from .* to 25"),
        (pictures(2, 4) * torch.nan, "finite images.*nan"),
        (
            pictures(2, 4)[:, :, :1],
            r"wants images \(objects, views, 3, height, width\), but got \(2, 4, 1, 20, 20\)",
        ),
    ],
)
def test_unusable_images_are_refused(images: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        values(make_blip_reward(Reward3DScorer), images, ["a cat", "red"])


def test_cards_declare_what_a_caller_must_know() -> None:
    cards = [make_blip_reward(kind).card for kind in KINDS]
    assert [card.name for card in cards] == ["imagereward", "reward3d", "reward3d-crossview"]
    assert [card.views for card in cards] == [None, 4, 4]
    assert [card.prompt_tokens for card in cards] == [35, 100, 100]
    assert [card.prompt_per_view for card in cards] == [False, True, True]
    assert all(card.differentiable and card.uses_prompt for card in cards)
    assert [card.license for card in cards] == ["Apache-2.0", "NOASSERTION", "NOASSERTION"]


def test_saved_pictures_score_almost_as_images_do() -> None:
    reward, images = make_blip_reward(Reward3DScorer), pictures(1, 4)
    saved = [
        Image.fromarray((one * 255).round().byte().permute(1, 2, 0).contiguous().numpy()) for one in images[0]
    ]
    of_files = reward.score_pictures([saved], ["a cat"])
    torch.testing.assert_close(of_files, values(reward, images, ["a cat"]), rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="as many pictures of each object, but got 4, 3"):
        reward.score_pictures([saved, saved[:3]], ["a cat", "red"])


def test_the_published_sizes_are_the_published_numbers_of_weights() -> None:
    with torch.device("meta"):
        reward, scorer, cross_view = ImageReward(), Reward3DScorer(), Reward3DCrossView()
    counts = [sum(p.numel() for p in one.parameters()) for one in (reward, scorer, cross_view)]
    assert counts[0] == 446_665_953
    assert counts[1] - counts[0] == 147_841
    assert counts[2] - counts[0] == 3_542_784
    assert reward.config == BLIP_LARGE


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_comes_back_from_a_file_in_the_published_layout(
    kind: type[BlipReward], tmp_path: Path
) -> None:
    reward = make_blip_reward(kind, mean=0.3, std=2.0)
    reward.save(tmp_path / "reward.safetensors")
    keys = set(safetensors.torch.load_file(tmp_path / "reward.safetensors"))
    assert {"blip.visual_encoder.blocks.0.attn.qkv.weight", "blip.visual_encoder.cls_token"} <= keys
    assert ("Scorer.fc1.weight" in keys) == (kind is Reward3DScorer)
    loaded = kind.load(tmp_path / "reward.safetensors", BertTokens(WORDS, kind.text_length))
    assert (loaded.mean, loaded.std, loaded.config) == (0.3, 2.0, BLIP)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.card.weights_sha256 == read_checkpoint(tmp_path / "reward.safetensors").sha256
    images = pictures(1, 4)
    assert torch.equal(values(loaded, images, ["a cat"]), values(reward, images, ["a cat"]))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_published_torch_file_is_read(wrapped: bool, tmp_path: Path) -> None:
    reward = make_blip_reward(ImageReward)
    state = reward.published_state()
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(100)[None]
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "ImageReward.pt")
    loaded = ImageReward.from_checkpoint(read_checkpoint(tmp_path / "ImageReward.pt"), BLIP)
    assert all(torch.equal(loaded.published_state()[name], state[name]) for name in loaded.published_state())


def test_the_unused_projections_may_be_absent() -> None:
    state = make_blip_reward(ImageReward).published_state()
    kept = {name: tensor for name, tensor in state.items() if "_proj" not in name}
    loaded = ImageReward.from_checkpoint(Checkpoint("lean.pt", kept), BLIP)
    assert set(loaded.published_state()) == set(kept)


def test_a_file_that_does_not_fit_is_refused_by_name_and_key() -> None:
    state = make_blip_reward(ImageReward).published_state()
    missing = {name: t for name, t in state.items() if name != "mlp.layers.7.bias"}
    with pytest.raises(
        ValueError, match=r"lean\.pt does not fit.*misses 1 tensor, first mlp\.layers\.7\.bias"
    ):
        ImageReward.from_checkpoint(Checkpoint("lean.pt", missing), BLIP)
    extra = {"Scorer.fc1.weight": torch.ones(1), "Scorer.fc1.bias": torch.ones(1)}
    with pytest.raises(ValueError, match=r"has unknown 2 tensors, first Scorer\.fc1\.weight"):
        ImageReward.from_checkpoint(Checkpoint("other.pt", {**state, **extra}), BLIP)
    larger = {"blip.visual_encoder.pos_embed": torch.ones(1, 9, 16)}
    with pytest.raises(ValueError, match=r"pos_embed, which is \(1, 9, 16\) where \(1, 5, 16\) is expected"):
        ImageReward.from_checkpoint(Checkpoint("big.pt", {**state, **larger}), BLIP)


def test_a_file_of_another_reward_or_vocabulary_is_refused(tmp_path: Path) -> None:
    make_blip_reward(Reward3DScorer).save(tmp_path / "scorer.safetensors")
    with pytest.raises(ValueError, match=r"scorer\.safetensors holds a reward3d, not a imagereward"):
        ImageReward.load(tmp_path / "scorer.safetensors", BertTokens(WORDS, 35))
    with pytest.raises(ValueError, match="knows 15 tokens, but the vocabulary beside it has 16"):
        Reward3DScorer.load(tmp_path / "scorer.safetensors", BertTokens([*WORDS, "dog"], 100))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("broken.safetensors", "broken.pt"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a weights file"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match=r"list\.pt holds no state dict"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="is not there"):
        read_checkpoint(tmp_path / "absent.pt")


def test_code_in_a_weights_file_does_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(tmp_path / "exploded"), "w")

    torch.save({"x": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt cannot be read"):
        read_checkpoint(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_half_precision_gives_float32_scores_and_gradients() -> None:
    reward = make_blip_reward(Reward3DScorer)
    images, wants = pictures(1, 4), torch.tensor([True])
    value, gradient = reward.score_batch(images, ["a cat"], wants)
    half_value, half_gradient = reward.bfloat16().score_batch(images, ["a cat"], wants)
    assert half_value.dtype == half_gradient.dtype == torch.float32
    torch.testing.assert_close(half_value, value, rtol=0.05, atol=0.05)
    assert torch.cosine_similarity(half_gradient.flatten(), gradient.flatten(), 0) > 0.99


def test_metadata_is_plain_json(tmp_path: Path) -> None:
    make_blip_reward(ImageReward).save(tmp_path / "reward.safetensors")
    with safetensors.safe_open(tmp_path / "reward.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["dreamserve_reward"])
    assert facts["kind"] == "imagereward"
    assert facts["mean"] == pytest.approx(0.167174, abs=1e-6)
