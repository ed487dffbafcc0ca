from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from service.jobs.spec import PsdMethod, SdsMethod
from tests.unit.workers.small_scenes import (
    Fixed,
    TinyReward,
    answer_at_once,
    ball_prior,
    flat_views,
    gradients_of_sds,
    make_scene,
    pictures,
    run,
)
from workers.engine import Engine
from workers.methods import make_method
from workers.methods.psd import certainty, guided_target, negative_loss
from workers.render import render
from workers.scene import NanDivergence, Scene, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from workers.contracts import Method

PRIOR = ball_prior()


class WantsBlue(TinyReward):
    def values(self, images: Tensor) -> Tensor:
        return (images[:, :, 2] - images[:, :, 0]).mean((1, 2, 3))[:, None]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1, 1)


def test_certainty_is_the_difference_of_bradley_terry_probabilities() -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    c = certainty(torch.tensor([0.3, 0.0, 0.0]), torch.tensor([0.1, 0.0, 9.0]), tau=0.1)
    assert c[0].item() == pytest.approx(sigmoid(2.0) - sigmoid(-2.0))
    assert c[1].item() == 0.0
    assert c[2].item() == pytest.approx(-1.0)


def test_the_target_is_the_mean_plus_the_weighted_preference() -> None:
    target = guided_target(column(1, 3), column(10, 14), torch.tensor([0.5]).double(), weight=2.0)
    assert target.flatten().tolist() == [2.0 + 2.0 * 0.5 * (10 - 14)]


def test_the_negative_embedding_shall_fit_the_losers_noise_and_not_the_winners() -> None:
    noise, start = column(0, 0), column(1, 1)
    learned = column(1, 1).requires_grad_()
    c = torch.tensor([0.5]).double()
    loss = negative_loss(learned, start, noise, c, beta=3.0)
    assert loss.item() == pytest.approx(0.5 * math.log(2))
    (gradient,) = torch.autograd.grad(loss, learned)
    # d/dê of −c log σ(β(Δw − Δl)) at Δ = 0 is ∓ c β/2 · 2(ê − ε).
    assert gradient.flatten().tolist() == pytest.approx([-1.5, 1.5])


def test_the_negative_loss_is_differentiated_as_finite_differences_say() -> None:
    generator = torch.Generator().manual_seed(0)
    learned, start, noise = torch.randn(3, 2, 4, 2, 3, 3, generator=generator, dtype=torch.float64)
    c = torch.tensor([0.5, -0.9, 0.0, 0.2], dtype=torch.float64)
    learned.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: negative_loss(x, start, noise, c, 2.0), (learned,))


def gradients(judge: Fixed, **knobs: Any) -> tuple[Tensor, Tensor]:
    """The gradients of one step with respect to the pictures and to the negative embedding."""
    latents = pictures(PRIOR)
    method = make_method(PsdMethod(**knobs), judge)
    scene = make_scene(PRIOR, method)
    loss = answer_at_once(method(scene, flat_views(latents, PRIOR), PRIOR))
    loss.backward()
    embedding = scene.learned("negative_embedding", scene.text[1], 0.0)
    assert latents.grad is not None
    return latents.grad, torch.zeros_like(embedding) if embedding.grad is None else embedding.grad


def gradient_of_sds_on_both_noises() -> Tensor:
    """SDS on the two noises that PSD draws, in mean."""
    first, second = gradients_of_sds(PRIOR)
    return (first + second) / 2


@pytest.mark.parametrize("learning_rate", [0.0, 1e-3])
def test_weight_zero_is_sds(learning_rate: float) -> None:
    judge = Fixed([1.0], [0.0])
    latents, embedding = gradients(judge, preference_weight=0.0, negative_lr=learning_rate)
    torch.testing.assert_close(latents, gradient_of_sds_on_both_noises(), atol=1e-9, rtol=1e-5)
    assert embedding.abs().sum() == 0


def test_weight_zero_never_moves_the_negative_embedding() -> None:
    method = make_method(PsdMethod(preference_weight=0.0, negative_lr=0.1), WantsBlue())
    scene = make_scene(ball_prior(), method)
    run(scene, 5)
    assert torch.equal(scene.learned("negative_embedding", scene.text[1], 0.1), scene.text[1])


def test_equal_scores_give_no_preference_term() -> None:
    tie = gradients(Fixed([0.4, 0.7, 0.1, 0.4], [0.4, 0.7, 0.1, 0.4]))
    torch.testing.assert_close(tie[0], gradient_of_sds_on_both_noises(), atol=1e-9, rtol=1e-5)
    assert tie[1].abs().sum() == 0


@pytest.mark.parametrize("opinion", [([0.5], [0.45]), ([0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.0])])
def test_swapping_the_pair_changes_nothing(opinion: tuple[list[float], list[float]]) -> None:
    """The same two samples in the other order, with the scores that belong to them."""
    generator = torch.Generator().manual_seed(1)
    x0, conditional, learned, start, noise = torch.randn(5, 2, 4, 3, 2, 2, generator=generator)
    scores = torch.tensor(opinion)

    def outcome(order: list[int]) -> tuple[Tensor, Tensor]:
        c = certainty(*scores[order], tau=0.1)
        loss = negative_loss(learned[order], start[order], noise[order], c, 10.0)
        return guided_target(x0[order], conditional[order], c, 2.0), loss

    for one, other in zip(outcome([0, 1]), outcome([1, 0]), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(outcome([0, 1])[0], x0.mean(0))


def test_the_preference_pulls_towards_the_preferred_sample() -> None:
    plain = gradient_of_sds_on_both_noises()
    first, second = (gradients(Fixed(*opinion))[0] - plain for opinion in (([1.0], [0.0]), ([0.0], [1.0])))
    assert first.abs().max() > 1e-6
    torch.testing.assert_close(first, -second, atol=1e-8, rtol=1e-4)
    surer = gradients(Fixed([1.0], [0.0]), preference_weight=3.0)[0] - plain
    torch.testing.assert_close(surer, 3 * first, atol=1e-8, rtol=1e-3)


def psd_scene(seed: int = 4) -> Scene:
    return make_scene(ball_prior(0.5), make_method(PsdMethod(negative_lr=0.01), WantsBlue()), seed=seed)


@pytest.mark.parametrize("pause", [1, 17, 30])
def test_a_resumed_scene_is_bit_equal_with_its_negative_embedding(pause: int) -> None:
    undisturbed = psd_scene()
    curve = run(undisturbed, 50)
    first = psd_scene()
    begun = run(first, pause)
    resumed = psd_scene()
    resumed.load_state_dict(load_checkpoint(save_checkpoint(first)))
    assert begun + run(resumed, 50) == curve
    one, other = resumed.state_dict().tensors, undisturbed.state_dict().tensors
    assert one.keys() == other.keys()
    assert "learned.negative_embedding" in one
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_embedding_learns_and_is_kept_where_it_shall_not_learn() -> None:
    scene = psd_scene()
    run(scene, 10)
    assert not torch.equal(scene.state_dict().tensors["learned.negative_embedding"], scene.text[1])
    kept = make_scene(ball_prior(0.5), make_method(PsdMethod(negative_lr=0.0), WantsBlue()))
    run(kept, 3)
    assert not [name for name in kept.state_dict().tensors if name.startswith("learn")]


def test_a_negative_embedding_that_leaves_the_finite_numbers_ends_its_scene() -> None:
    scene = psd_scene()
    run(scene, 2)
    scene.render()
    embedding = scene.learned("negative_embedding", scene.text[1], 0.01)
    embedding.grad = torch.full_like(embedding, torch.nan)
    with pytest.raises(NanDivergence, match="gradient of negative_embedding"):
        scene.descend()


def test_scenes_that_learn_embeddings_share_calls_and_keep_their_curves() -> None:
    prior, reward = ball_prior(0.5), WantsBlue()
    method = make_method(PsdMethod(negative_lr=0.01), reward)
    sds = make_method(SdsMethod(), None)
    calls: list[int] = []
    prior.denoiser.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    engine = Engine()
    scenes = [make_scene(prior, who, seed=seed) for seed, who in enumerate((method, sds, method))]
    for scene in scenes:
        engine.admit(scene)
    curves: list[list[float]] = [[] for _ in scenes]
    for _ in range(20):
        calls.clear()
        for curve, outcome in zip(curves, engine.step(), strict=True):
            assert outcome.error is None
            assert outcome.loss is not None
            curve.append(outcome.loss)
        # All scenes' 4 + 2 + 4 rows; then, for the embeddings, 2 + 2 differentiable to the text and 2 + 2 without.
        assert calls == [10, 4, 4]
    for seed, who in enumerate((method, sds, method)):
        alone = run(make_scene(prior, who, seed=seed), 20)
        assert curves[seed] == pytest.approx(alone, rel=1e-4)


def test_it_prefers_what_its_judge_prefers() -> None:
    prior = ball_prior(spread=0.5)

    def blueness(method: Method) -> float:
        scene = make_scene(prior, method, prompt="", steps_total=60)
        run(scene, 60)
        views = render(scene.field, scene.rig.draw(torch.Generator()), 8, 24)
        return (views.rgb[:, :, 2] - views.rgb[:, :, 0]).mean().item()

    sds = blueness(make_method(SdsMethod(), None))
    weak, strong = (
        blueness(make_method(PsdMethod(tau=0.001, preference_weight=weight), WantsBlue()))
        for weight in (2.0, 20.0)
    )
    assert weak > sds + 0.001
    assert strong > weak + 0.003
