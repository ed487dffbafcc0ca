"""Rewards in training: what of each is trained, what they begin with, and that what is written can be loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from reward_models.comparisons import Split, read_comparisons
from reward_models.embedded import EmbeddedReward, EmbeddedRewardConfig, load_embedded_reward
from reward_models.freeze import frozen_names
from reward_models.image_reward import ImageReward
from reward_models.reward3d import Reward3DCrossView, Reward3DScorer
from reward_models.tokens import BertTokens
from reward_models.trainable import (
    FIX_RATE,
    Start,
    TrainableBlip,
    TrainableEmbedded,
    open_trainable,
)
from reward_models.training import TrainingPlan, measure, train
from tests.unit.reward_models.pair_files import write_lines
from tests.unit.reward_models.small_networks import BLIP, WORDS, make_blip_reward, pictures

if TYPE_CHECKING:
    from pathlib import Path

    from reward_models.blip import BlipReward


def start(kind: type[BlipReward], name: str, folder: Path) -> Start:
    make_blip_reward(kind).save(folder / "weights.safetensors")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Start(name, folder / "weights.safetensors")


def embedded_start(folder: Path) -> Start:
    torch.manual_seed(0)
    config = EmbeddedRewardConfig("tiny", ["a", "red", "cat"], names=3, colors=3, width=16)
    trainable = TrainableEmbedded(EmbeddedReward(config))
    trainable.write(folder / "tiny.safetensors", 0.0, 1.0, {})
    return Start("tiny", folder / "tiny.safetensors")


def test_the_scorer_trains_all_that_the_published_rule_leaves_and_its_score_uses(tmp_path: Path) -> None:
    trainable = open_trainable(start(Reward3DScorer, "reward3d", tmp_path))
    assert isinstance(trainable, TrainableBlip)
    frozen = set(frozen_names(trainable.reward.published_state(), 0.7, 3, 3))
    trained = {
        name.replace("reward.scorer", "Scorer").removeprefix("reward.") for name in trainable.trained()
    }
    assert trained
    assert not trained & frozen
    assert {name for name in trained if name.startswith("mlp")} == {
        f"mlp.layers.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")
    }
    assert {"Scorer.fc1.weight", "blip.text_encoder.encoder.layer.2.output.dense.weight"} <= trained


def test_cross_view_trains_its_adapter_alone(tmp_path: Path) -> None:
    trainable = open_trainable(start(Reward3DCrossView, "reward3d-crossview", tmp_path))
    assert {name.split(".")[1] for name in trainable.trained()} == {"cross_view_adapter"}


def test_an_embedded_reward_keeps_its_reader(tmp_path: Path) -> None:
    trainable = open_trainable(embedded_start(tmp_path))
    assert {name.split(".")[1] for name in trainable.trained()} == {"viewer"}


@pytest.mark.parametrize("name", ["reward3d", "reward3d-crossview"])
def test_reward3d_may_begin_with_image_rewards_weights(name: str, tmp_path: Path) -> None:
    begun = start(ImageReward, name, tmp_path)
    first, again, other = (open_trainable(replace(begun, seed=seed)) for seed in (1, 1, 2))
    assert isinstance(first, TrainableBlip)
    published, kept = first.reward.published_state(), make_blip_reward(ImageReward).published_state()
    assert all(torch.equal(published[key], tensor) for key, tensor in kept.items())
    new = [key for key in published if key not in kept]
    assert new
    states = [one.reward.published_state() for one in (again, other) if isinstance(one, TrainableBlip)]
    assert all(torch.equal(published[key], states[0][key]) for key in new)
    assert not all(torch.equal(published[key], states[1][key]) for key in new)


@pytest.mark.parametrize("kind", [Reward3DScorer, Reward3DCrossView, None])
def test_every_trained_parameter_has_a_gradient(
    kind: type[Reward3DScorer | Reward3DCrossView] | None, tmp_path: Path
) -> None:
    trainable = open_trainable(embedded_start(tmp_path) if kind is None else start(kind, kind.kind, tmp_path))
    pixels = torch.stack([trainable.prepare(views) for views in pictures(2, 4)])
    trainable(pixels, ["a cat", "red"]).sum().backward()
    for name, parameter in trainable.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_named_modules_begin_anew_and_others_do_not(tmp_path: Path) -> None:
    begun = embedded_start(tmp_path)
    kept, renewed = open_trainable(begun), open_trainable(replace(begun, renew=("viewer.heads",)))
    changed = {
        name
        for (name, a), b in zip(kept.state_dict().items(), renewed.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    }
    assert {name.removeprefix("reward.").rpartition(".")[0] for name in changed} == {
        f"viewer.heads.{head}" for head in ("name", "color", "relation")
    }
    with pytest.raises(ValueError, match=r"cannot begin 'head' anew.*There are reader, .*viewer\.heads"):
        open_trainable(replace(begun, renew=("head",)))


def test_a_file_of_another_reward_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds the reward 'tiny', not 'embedded-multiview'"):
        open_trainable(replace(embedded_start(tmp_path), name="embedded-multiview"))
    other = start(Reward3DScorer, "reward3d-crossview", tmp_path)
    with pytest.raises(ValueError, match="holds a reward3d, not a reward3d-crossview"):
        open_trainable(other)


def test_what_is_written_is_normalized_and_loads_under_its_own_name(tmp_path: Path) -> None:
    trainable = open_trainable(start(Reward3DScorer, "reward3d", tmp_path))
    assert isinstance(trainable, TrainableBlip)
    trainable.eval()
    trainable.write(tmp_path / "new.safetensors", 0.25, 2.0, {})
    loaded = Reward3DScorer.load(tmp_path / "new.safetensors", BertTokens(WORDS, 100))
    images = pictures(2, 4)
    pixels = torch.stack([trainable.prepare(views) for views in images])
    raw = trainable(pixels, ["a cat", "red"])
    torch.testing.assert_close(loaded.score(images, ["a cat", "red"])[:, 0], (raw - 0.25) / 2)
    assert loaded.config == BLIP


def test_a_written_embedded_reward_loads_and_larger_pictures_score_alike(tmp_path: Path) -> None:
    trainable = open_trainable(embedded_start(tmp_path))
    trainable.eval()
    trainable.write(tmp_path / "new.safetensors", 0.25, 2.0, {"test": {}})
    loaded = load_embedded_reward(tmp_path / "new.safetensors")
    images = pictures(2, 4)
    pixels = torch.stack([trainable.prepare(views) for views in images])
    torch.testing.assert_close(
        trainable(pixels, ["a cat", "red"]), loaded.score(images, ["a cat", "red"])[:, 0]
    )


def write_random_pairs(folder: Path, count: int) -> Path:
    """Write pairs of random colors in four quarters of each view, judged by chance: there is no rule to learn."""
    rng = np.random.default_rng(0)
    lines: list[Any] = []
    for number in range(count):
        for side in ("a", "b"):
            quarters = rng.integers(0, 256, (4, 2, 2, 3)).astype(np.uint8)
            np.savez(folder / f"{number}-{side}.npz", views=quarters.repeat(8, 1).repeat(8, 2))
        sides = {side: f"{number}-{side}.npz" for side in ("a", "b")}
        lines.append({"prompt": f"a cat {number}", **sides, "preferred": "ab"[rng.integers(2)]})
    return write_lines(folder / "pairs.jsonl", lines)


@pytest.mark.slow
def test_a_tiny_scorer_learns_64_pairs_by_heart(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pairs = read_comparisons(write_random_pairs(tmp_path, 64), 4)
    reward = make_blip_reward(Reward3DScorer)
    assert isinstance(reward, Reward3DScorer)
    reward.tokens = BertTokens(WORDS, 8)  # 100, most of them padding, would take ten times as long
    trainable = TrainableBlip(reward, FIX_RATE)
    before = measure(trainable, pairs).accuracy
    plan = TrainingPlan(learning_rate=3e-3, batch=16, epochs=60, evaluations_per_epoch=1, patience=60)
    train(trainable, Split(pairs, pairs, pairs), plan)
    assert before < 0.7
    assert measure(trainable, pairs).accuracy >= 0.95
