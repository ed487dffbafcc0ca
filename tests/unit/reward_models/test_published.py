"""Published rewards are found by name, and what is missing is said with where to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
import torch

from reward_models import blip, clip, published
from reward_models.checkpoints import write_checkpoint
from reward_models.image_reward import ImageReward
from reward_models.linear_head import LinearHead
from reward_models.published import PUBLISHED, PublishedRewardName, load_published
from reward_models.reward3d import Reward3DCrossView, Reward3DScorer
from tests.unit.reward_models.small_networks import WORDS, make_blip_reward, pictures

if TYPE_CHECKING:
    from reward_models.contracts import RewardModel

ROOT = Path(__file__).parents[3]
SMALL_H, SMALL_L = (
    clip.ClipConfig(12, 8, 16, 2, 2, 16, 2, 2, quick_gelu=quick, image_px=16) for quick in (False, True)
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of BLIP's and HPS's rewards, at small sizes."""
    monkeypatch.setattr(clip, "VIT_H_14", SMALL_H)
    monkeypatch.setattr(clip, "VIT_L_14", SMALL_L)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    for name, kind in (
        ("ImageReward", ImageReward),
        ("Reward3D_Scorer", Reward3DScorer),
        ("Reward3D_CrossViewFusion", Reward3DCrossView),
    ):
        make_blip_reward(kind).save(tmp_path / f"{name}.safetensors")
    torch.manual_seed(0)
    for version in ("2", "2.1"):
        state = clip.ClipTrunk(SMALL_H).published_state()
        torch.save({"state_dict": state}, tmp_path / f"HPS_v{version}_compressed.pt")
    return tmp_path


def put_model(folder: Path, trunk: clip.ClipTrunk) -> None:
    write_checkpoint(folder / "model.safetensors", trunk.published_state("transformers"), {})


@pytest.mark.parametrize("name", get_args(PublishedRewardName))
def test_every_published_reward_loads_by_its_name(
    name: PublishedRewardName, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(folder, clip.ClipTrunk(SMALL_H if name == "pickscore" else SMALL_L))
    if name == "aesthetic":
        monkeypatch.setitem(
            PUBLISHED,
            "aesthetic",
            published.PublishedReward(
                (published.PublishedFile("head.pth", "here"), published._CLIP_L), "MIT"
            ),
        )
        torch.save(LinearHead(SMALL_L.embedding).state_dict(), folder / "head.pth")
    reward: RewardModel = load_published(name, folder)
    assert reward.card.name == name
    assert len(reward.card.weights_sha256 or "") == 64
    scores, gradient = reward.score_batch(pictures(1, 4), ["a red cat"], torch.tensor([True]))
    assert scores.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", get_args(PublishedRewardName))
def test_missing_files_are_named_with_their_origin(name: PublishedRewardName, tmp_path: Path) -> None:
    assert PUBLISHED[name].missing(tmp_path) == list(PUBLISHED[name].files)
    first = PUBLISHED[name].files[0]
    with pytest.raises(ValueError, match=f"reward '{name}' is not whole: put .* into .*, license") as caught:
        load_published(name, tmp_path)
    assert first.name in str(caught.value)
    assert first.origin in str(caught.value)


def test_licenses_are_those_of_the_cards(folder: Path) -> None:
    for name in ("imagereward", "reward3d", "hpsv2", "hpsv2.1"):
        assert load_published(name, folder).card.license == PUBLISHED[name].license


def test_a_file_that_is_not_the_published_one_is_refused(folder: Path) -> None:
    put_model(folder, clip.ClipTrunk(SMALL_L))
    torch.save(LinearHead(SMALL_L.embedding).state_dict(), folder / PUBLISHED["aesthetic"].files[0].name)
    with pytest.raises(ValueError, match=r"is not the published file .*: fetch it anew"):
        load_published("aesthetic", folder)


def test_the_embedded_default_imports_no_transformers() -> None:
    code = (
        "import sys, reward_models.published, reward_models.embedded, reward_models.actor, reward_models.ensemble\n"
        "import reward_models.blip, reward_models.clip_rewards, reward_models.reward3d, reward_models.freeze\n"
        "print([name for name in ('transformers', 'torchvision', 'tokenizers', 'ray') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert answer.stdout.strip() == "[]"


def test_knowing_what_is_published_needs_no_torch() -> None:
    code = "import reward_models.published, sys; print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert answer.stdout.strip() == "False"
    assert blip.BLIP_LARGE.vocabulary == 30524
