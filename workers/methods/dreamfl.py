"""DreamFL: score distillation that also follows the gradient of a reward.

DreamReward, arXiv 2403.14613: Reward3D feedback learning.

    L = L_SDS − λ r(I),   d L/d I = d L_SDS/d I − λ · d r/d I

for the picture I of the render in front of the prior's background and r, the mean of the reward's scores. The
paper writes the same as a corrected noise, ε* = ε̂ − λ_r d r/d x, with the reward taken at the predicted x̂₀.

Differs from the paper:
- Form `lambda` (the default) scores the render itself with one constant λ, from the first step to the last.
- Forms `guidance1` and `guidance2` follow the published code, which is not the paper's formula: a hinge
  relu(4 − r) weighed anew at each step by counting digits, the decoded x̂₀ scored in place of the render at
  small t (its gradient passed straight to the render), and an end phase without SDS. Their steps are those of
  the published 10,000 and 10,400 steps, as fractions of a job's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workers.methods.sds import per_element, reconstruction_loss, sds_target

if TYPE_CHECKING:
    from torch import Tensor

    from service.jobs.spec import DreamFlMethod
    from workers.contracts import Prior, Reward, Scores, Views
    from workers.scene import Scene

__all__ = ["PUBLISHED", "Published", "digit_weight", "dreamfl", "follow", "hinge", "published_loss"]


@dataclass(frozen=True, slots=True)
class Published:
    """The constants of a published guidance; g is its step counter, which starts at 0."""

    num_steps: int
    first_reward: int
    """The first g with a reward."""
    x0_below_t: int
    """The largest of 1000 times at which the decoded x̂₀ is scored."""
    coefficient: float
    last_sds: int = 9800
    """After this g the loss is the reward's alone, times 10⁶."""

    def counter(self, step: int, steps_total: int) -> float:
        """Where a job's step stands on the published scale."""
        return step * self.num_steps / steps_total

    def scores_x0(self, g: float, t_of_1000: float) -> bool:
        """Tell whether the decoded x̂₀ is scored in place of the render."""
        return t_of_1000 <= self.x0_below_t and g <= self.last_sds


PUBLISHED = {
    "guidance1": Published(num_steps=10_000, first_reward=6000, x0_below_t=100, coefficient=0.6),
    "guidance2": Published(num_steps=10_400, first_reward=1001, x0_below_t=300, coefficient=0.3),
}
"""Source: DreamReward_guidance1.py and DreamReward_guidance2.py with their shell scripts."""


def follow(image: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Make a loss of this `value` whose gradient with respect to `image` is exactly `gradient`."""
    return value + ((image - image.detach()) * gradient).sum()


def hinge(scores: Scores) -> tuple[Tensor, Tensor]:
    """mean relu(4 − r) over all scores, and its gradient with respect to the scored images."""
    room = 4.0 - scores.values
    below = (room > 0).to(room.dtype)[..., None, None, None]
    return room.relu().mean(), -below * scores.gradient / room.numel()


def digit_weight(sds_loss: float, reward_loss: float) -> float:
    """10^(d(SDS loss) − d(reward loss)), d counting the characters before the point in Python's notation."""

    def digits(value: float) -> int:
        return len(str(value).split(".")[0])

    return 10.0 ** (digits(sds_loss) - digits(reward_loss))


def published_loss(sds_loss: Tensor, reward_loss: Tensor, g: float, form: Published) -> Tensor:
    """L_SDS + coefficient · digit weight · hinge, or 10⁶ · hinge once g is past the last step with SDS."""
    if g > form.last_sds:
        return 1e6 * reward_loss
    weight = digit_weight(sds_loss.item(), reward_loss.item())
    return sds_loss + weight * form.coefficient * reward_loss


async def dreamfl(scene: Scene, views: Views, prior: Prior, knobs: DreamFlMethod, reward: Reward) -> Tensor:
    """Pull the latents towards the prior's x̂₀ and the render up the reward's gradient."""
    latents = await prior.encode(views)
    x0, t = await sds_target(scene, latents, views.cameras, prior, knobs)
    sds_loss = reconstruction_loss(latents, x0)
    render = prior.composite(views)
    if knobs.form == "lambda":
        scores = await _score(scene, reward, render)
        gradient = scores.gradient / scores.values.numel()
        climb = follow(render, scores.values.mean(), gradient)
        return per_element(sds_loss, latents) - knobs.reward_weight * climb

    form = PUBLISHED[knobs.form]
    g = form.counter(scene.step, scene.steps_total)
    if g < form.first_reward:
        return per_element(sds_loss, latents)
    image = render
    if form.scores_x0(g, t.item() * 1000 / prior.schedule.num_timesteps):
        image = await prior.decode(x0)
    reward_loss = follow(render, *hinge(await _score(scene, reward, image)))
    return per_element(published_loss(sds_loss, reward_loss, g, form), latents)


async def _score(scene: Scene, reward: Reward, image: Tensor) -> Scores:
    scores = await reward.score(image.detach(), [scene.prompt], torch.ones(1, dtype=torch.bool))
    scene.record("reward", scores.values.mean())
    return scores
