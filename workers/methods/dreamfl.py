"""DreamFL: score distillation that also follows the gradient of a reward.

DreamReward, arXiv 2403.14613: Reward3D feedback learning.

    lambda, paper             L = L_SDS − λ r(I)
    guidance1, guidance2      L = L_SDS + c · w · relu(4 − r(I)),  and after step 9800  L = 10⁶ · relu(4 − r(I))

for the mean r of the reward's scores (of several scores the guidance forms take the mean of the hinges), and for a
picture I whose gradient arrives at the render in front of the prior's background:
d L/d render = d L_SDS/d render − λ · d r/d I. The paper writes its form as a corrected noise, ε* = ε̂ − λ_r d r/d x,
with the reward taken at the predicted x̂₀.

- `lambda`, the default: I is the render itself; one constant λ, from the first step to the last.
- `paper`: I is the decoded x̂₀, as in the paper's formula; its gradient is passed straight to the render, as the
  published code does where it scores x̂₀ (there is no pass back through decoder and denoiser).
- `guidance1`, `guidance2`, as released: w = 10^(digits of L_SDS − digits of the hinge), anew at each step; I is the
  decoded x̂₀ below a small t, else the render; the reward begins late, and at the end there is no SDS. Their steps
  are those of the published 10,000 and 10,400 steps, as fractions of a job's.

Why the default does not end in the 10⁶ phase. A prior's loss is all that holds an object near what can be: without
it the last steps follow the reward wherever it leads, which raises the reward's own score and lowers every other
one (as the published numbers do: Reward3D up, HPSv2 and CLIP down). The factor says nothing more: Adam divides it
away, except in the steps after the jump, in which its second moment is still that of small gradients and a step is
many times too long. And a weight that counts digits jumps by ten where a loss passes a power of ten, while a hinge
at 4 means something for Reward3D's scale only; λ has one meaning for every reward and every step.
The default scores the render because that is what becomes the mesh; x̂₀ at a large t is not yet like it.

Differs from the paper:
- Default form, as above; and forms `guidance1` and `guidance2`, which follow the published code, not its formula.
- L_SDS is the mean square over elements, as in `sds`, so λ does not depend on the size of the latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workers.methods.sds import Sample, draw_sample, per_element, reconstruction_loss, sds_target

if TYPE_CHECKING:
    from torch import Tensor

    from service.jobs.knobs import DreamFlMethod
    from workers.contracts import Prior, Reward, Scores, Views
    from workers.scene import Scene

__all__ = [
    "PUBLISHED",
    "Published",
    "digit_weight",
    "dreamfl",
    "follow",
    "hinge",
    "published_loss",
    "released_loss",
]


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
    sample = draw_sample(scene, latents, views.cameras, prior, knobs)
    render = prior.composite(views)
    if knobs.form in ("guidance1", "guidance2"):
        return per_element(await released_loss(scene, sample, render, prior, knobs, reward), latents)
    x0 = await sds_target(scene, sample, prior, knobs)
    image = await prior.decode(x0) if knobs.form == "paper" else render
    scores = await _score(scene, reward, image)
    climb = follow(render, scores.values.mean(), scores.gradient / scores.values.numel())
    return per_element(reconstruction_loss(latents, x0), latents) - knobs.reward_weight * climb


async def released_loss(
    scene: Scene, sample: Sample, render: Tensor, prior: Prior, knobs: DreamFlMethod, reward: Reward
) -> Tensor:
    """L of `guidance1` or `guidance2`, a sum over elements, for one noised version of each group (P = G)."""
    form = PUBLISHED[knobs.form]
    x0 = await sds_target(scene, sample, prior, knobs)
    sds_loss = reconstruction_loss(sample.latents, x0)
    g = form.counter(scene.step, scene.steps_total)
    if g < form.first_reward:
        return sds_loss
    image = render
    if form.scores_x0(g, sample.t[0].item() * 1000 / prior.schedule.num_timesteps):
        image = await prior.decode(x0)
    reward_loss = follow(render, *hinge(await _score(scene, reward, image)))
    return published_loss(sds_loss, reward_loss, g, form)


async def _score(scene: Scene, reward: Reward, image: Tensor) -> Scores:
    rows = len(image)
    scores = await reward.score(image.detach(), scene.prompts(rows), torch.ones(rows, dtype=torch.bool))
    scene.record("reward", scores.values.mean())
    return scores
