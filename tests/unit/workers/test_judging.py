"""What rewards are told: the prompt as they were trained with it."""

from __future__ import annotations

from dataclasses import replace

import torch

from reward_models.contracts import ViewPrompt
from tests.unit.workers.small_scenes import TinyReward, ball_prior, make_scene, methods_of_three
from tests.unit.workers.small_workers import CARD
from workers.cameras import orbit_cameras
from workers.judging import SharedReward
from workers.priors.view_prompts import SeenPrompt, seen_prompts


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
