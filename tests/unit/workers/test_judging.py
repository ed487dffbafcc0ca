"""What rewards are told: the prompt as they were trained with it; and how several of them answer as one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from reward_models.contracts import ViewPrompt, score_and_gradient
from reward_models.ensemble import Ensemble, EnsembleSpec, Member
from tests.unit.workers.small_scenes import TinyReward, ball_prior, make_scene, methods_of_three
from tests.unit.workers.small_workers import CARD
from workers.cameras import orbit_cameras
from workers.judging import JointReward, SharedReward
from workers.priors.view_prompts import SeenPrompt, seen_prompts

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from workers.contracts import Scores


def told(prompts: list[str], *, per_view: bool) -> list[str]:
    heard: list[str] = []

    def source(
        images: torch.Tensor, texts: list[str], wants: torch.Tensor, num_scenes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heard.extend(texts)
        return torch.zeros(len(images), 1), torch.zeros_like(images)

    reward = SharedReward("r", source, replace(CARD, prompt_per_view=per_view))
    reward.score(torch.zeros(len(prompts), 4, 3, 2, 2), prompts, torch.zeros(len(prompts))).now()
    return heard


def test_a_reward_of_texts_per_view_hears_from_where_each_view_looks() -> None:
    cameras = orbit_cameras(torch.arange(4)[None] * 90.0, torch.tensor(15.0), 3.0, 40.0)
    (text,) = told(seen_prompts("a cat", cameras), per_view=True)
    assert isinstance(text, ViewPrompt)
    assert text == "a cat"
    assert text.views == ("a cat, front view", "a cat, side view", "a cat, back view", "a cat, side view")


def test_other_rewards_and_plain_prompts_stay_plain() -> None:
    for prompt, per_view in ((SeenPrompt("a cat", ["front"] * 4), False), ("a cat", True)):
        (text,) = told([prompt], per_view=per_view)
        assert type(text) is str
        assert text == "a cat"


def test_a_scene_says_each_groups_views_in_the_order_of_the_rows() -> None:
    scene = make_scene(ball_prior(), methods_of_three(TinyReward())["sds"])
    assert scene.prompts(2) == ["red", "red"]
    scene.render()
    first, second = scene.prompts(2)
    assert isinstance(first, SeenPrompt)
    assert len(first.directions) == 4
    assert isinstance(second, SeenPrompt)
    assert first.directions == second.directions


class Pixels:
    """Scores each view by the mean of its squared pixels, times a factor."""

    def __init__(self, name: str, factor: float) -> None:
        self.card = replace(CARD, name=name, views=None)
        self._factor = factor

    def score_batch(
        self, images: torch.Tensor, prompts: list[str], wants_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return score_and_gradient(
            lambda pictures, _: self._factor * pictures.square().mean((2, 3, 4)),
            images,
            prompts,
            wants_gradient,
        )

    def source(
        self, images: torch.Tensor, prompts: list[str], wants: torch.Tensor, num_scenes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.score_batch(images, prompts, wants)


def test_a_joint_reward_is_the_ensemble_of_its_members() -> None:
    members = [Member("dim", 2.0, center=0.5, scale=0.1), Member("bright", 0.5, center=-1.0, scale=3.0)]
    models = {"dim": Pixels("dim", 1.0), "bright": Pixels("bright", 10.0)}
    images = torch.rand(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    wants = torch.tensor([True, False])
    joint = JointReward("both", members, [SharedReward(name, one.source) for name, one in models.items()])
    scores = answered(joint.score(images, ["a", "b"], wants))
    expected = Ensemble(EnsembleSpec("both", tuple(members)), models).score_batch(images, ["a", "b"], wants)
    torch.testing.assert_close((scores.values, scores.gradient), expected)
    assert scores.values.shape == (2, 1)
    assert scores.gradient[0].abs().max() > 0
    assert scores.gradient[1].abs().max() == 0


def answered(awaitable: Awaitable[Scores]) -> Scores:
    """What a scene gets that awaits this, each of its questions being answered at once."""
    asking = awaitable.__await__()
    try:
        ask = next(asking)
        while True:
            ask = asking.send(ask.now())
    except StopIteration as end:
        return end.value
