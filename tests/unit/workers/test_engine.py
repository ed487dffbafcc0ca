from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from service.jobs.spec import SdsMethod
from tests.unit.workers.small_scenes import TinyReward, ball_prior, make_scene, methods_of_three
from workers.engine import Engine
from workers.methods import make_method
from workers.scene import NanDivergence, Scene

if TYPE_CHECKING:
    from torch import Tensor

    from workers.contracts import Prior, Views

WHO = [("sds", "red"), ("dreamfl", "blue"), ("dreamdpo", "red"), ("sds", "blue")]
"""Four scenes of three methods."""


def four_scenes(steps_total: int = 50) -> tuple[list[Scene], Any, TinyReward]:
    prior, reward = ball_prior(), TinyReward()
    methods = methods_of_three(reward)
    scenes = [
        make_scene(prior, methods[method], prompt=prompt, seed=seed, steps_total=steps_total)
        for seed, (method, prompt) in enumerate(WHO)
    ]
    return scenes, prior, reward


def solo_curve(who: int, steps: int) -> list[float]:
    return curves([four_scenes()[0][who]], steps)[0]


def curves(scenes: list[Scene], steps: int) -> list[list[float]]:
    """The loss curves of scenes that share an engine; a scene that ended has a shorter one."""
    engine = Engine()
    for scene in scenes:
        engine.admit(scene)
    losses: dict[int, list[float]] = {id(scene): [] for scene in scenes}
    for _ in range(steps):
        for outcome in engine.step():
            if outcome.error is None:
                assert outcome.loss is not None
                losses[id(outcome.scene)].append(outcome.loss)
    return list(losses.values())


async def sds_then(scene: Scene, views: Views, prior: Prior, harm: Any, at: int = 3) -> Tensor:
    """SDS, to which something happens at a step."""
    loss = await make_method(SdsMethod(), None)(scene, views, prior)
    return harm(loss) if scene.step == at else loss


def bad_scene(prior: Prior, harm: Any) -> Scene:
    async def method(scene: Scene, views: Views, prior: Prior) -> Tensor:
        return await sds_then(scene, views, prior, harm)

    return make_scene(prior, method, seed=9)


class BackwardFails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("this backward fails")


class NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


def fail(loss: Tensor) -> Tensor:
    raise RuntimeError("this method fails")


def test_four_scenes_of_three_methods_call_each_network_once_per_step() -> None:
    scenes, prior, reward = four_scenes()
    calls: list[str] = []
    prior.denoiser.register_forward_hook(lambda *_: calls.append("predict"))
    reward.network.register_forward_hook(lambda *_: calls.append("score"))
    engine = Engine()
    for scene in scenes:
        engine.admit(scene)
    for _ in range(3):
        calls.clear()
        assert all(outcome.error is None for outcome in engine.step())
        assert calls == ["predict", "score"]


def test_curves_of_scenes_that_share_an_engine_equal_their_solo_curves() -> None:
    together = curves(four_scenes()[0], 50)
    for who in range(4):
        alone = solo_curve(who, 50)
        assert len(alone) == 50
        assert together[who] == pytest.approx(alone, rel=1e-4)


def test_admitting_and_retiring_a_scene_moves_no_other_curve() -> None:
    scenes = four_scenes()[0]
    engine = Engine()
    engine.admit(scenes[0])
    curve = []
    for step in range(20):
        if step == 5:
            engine.admit(scenes[1])
        if step == 8:
            engine.admit(scenes[2])
        if step == 12:
            engine.retire(scenes[1])
        curve += [outcome.loss for outcome in engine.step() if outcome.scene is scenes[0]]
    assert curve == pytest.approx(solo_curve(0, 20), rel=1e-4)
    assert engine.scenes == (scenes[0], scenes[2])
    assert scenes[1].step == 7


@pytest.mark.parametrize(
    ("harm", "error", "match"),
    [
        (fail, RuntimeError, "this method fails"),
        (BackwardFails.apply, RuntimeError, "this backward fails"),
        (lambda loss: loss * torch.nan, NanDivergence, "loss is not a finite number at step 3"),
        (lambda loss: loss.expand(2), AssertionError, "a scalar loss, not one of shape"),
        (NanGradient.apply, NanDivergence, "gradient of raw_density is not a finite number at step 3"),
    ],
    ids=["raises", "backward raises", "nan loss", "two losses", "nan gradient"],
)
def test_a_scene_that_goes_wrong_ends_alone(harm: Any, error: type[Exception], match: str) -> None:
    scenes, prior, _ = four_scenes()
    bad = bad_scene(prior, harm)
    engine = Engine()
    for scene in [scenes[2], bad, scenes[3]]:
        engine.admit(scene)
    outcomes = [engine.step() for _ in range(10)]
    (ended,) = [outcome for step in outcomes for outcome in step if outcome.error is not None]
    assert ended.scene is bad
    assert bad.step == 3
    with pytest.raises(error, match=match):
        raise ended.error
    assert engine.scenes == (scenes[2], scenes[3])
    for who in (2, 3):
        curve = [o.loss for step in outcomes for o in step if o.scene is scenes[who]]
        assert curve == pytest.approx(solo_curve(who, 10), rel=1e-4)


def test_a_batched_call_that_fails_is_repeated_scene_by_scene() -> None:
    scenes, prior, _ = four_scenes()
    sizes: list[int] = []

    def fail_when_shared(module: Any, arguments: tuple[Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > 4:
            raise torch.cuda.OutOfMemoryError("too many rows")

    prior.denoiser.register_forward_pre_hook(fail_when_shared)
    got = curves(scenes, 5)
    assert sizes[:5] == [10, 2, 2, 4, 2]
    for who in range(4):
        assert got[who] == pytest.approx(solo_curve(who, 5), rel=1e-4)


def test_a_network_that_refuses_one_scene_ends_that_scene_only() -> None:
    scenes, prior, _ = four_scenes()
    refused = scenes[1].generator.initial_seed()

    def refuse(module: Any, arguments: tuple[Tensor, ...]) -> None:
        mean = arguments[3]
        if (mean[:, :, 2] > mean[:, :, 0]).any():
            raise RuntimeError("no blue things")

    prior.denoiser.register_forward_pre_hook(refuse)
    engine = Engine()
    for scene in scenes:
        engine.admit(scene)
    errors = {outcome.scene.generator.initial_seed(): outcome.error for outcome in engine.step()}
    assert errors[0] is None
    assert errors[2] is None
    assert "no blue things" in str(errors[refused])
    assert engine.scenes == (scenes[0], scenes[2])


def test_a_method_that_asks_out_of_order_is_told_so() -> None:
    prior = ball_prior()

    async def backwards(scene: Scene, views: Views, prior: Prior) -> Tensor:
        images = await prior.decode(torch.zeros(1, 4, *prior.latent_shape))
        return images.mean() + (await prior.encode(views)).mean()

    engine = Engine()
    engine.admit(make_scene(prior, backwards))
    (outcome,) = engine.step()
    assert "encode, predict, decode, score" in str(outcome.error)


def test_outcomes_tell_what_the_method_recorded() -> None:
    scenes, _, _ = four_scenes()
    engine = Engine()
    for scene in scenes:
        engine.admit(scene)
    readings = [set(outcome.readings) for outcome in engine.step()]
    assert readings == [set(), {"reward"}, {"reward", "gap"}, set()]


def test_an_engine_without_scenes_steps_over_nothing() -> None:
    assert Engine().step() == []
