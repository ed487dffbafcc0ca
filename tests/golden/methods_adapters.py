"""Golden cases of the issue *methods*: see `tests/golden/adapters.py`.

A case's network outputs, encoder, decoder and reward are given: `GivenPrior` and `GivenReward` are these, and the
methods are driven with them at the case's noise and time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

from service.jobs.knobs import DreamDpoMethod, DreamFlMethod, Ramp, SdsMethod
from tests.unit.workers.small_scenes import answer_at_once, constant
from workers.cameras import CameraRig, Cameras
from workers.contracts import Prediction, Scores, Views, asked
from workers.diffusion import linear_schedule, time_window, x0_from_noise
from workers.fields.voxel import VoxelField
from workers.methods.dreamdpo import dreamdpo_loss
from workers.methods.dreamfl import PUBLISHED, digit_weight, released_loss
from workers.methods.sds import Sample, distillation_loss
from workers.scene import Scene
from workers.stages import MVDREAM_STAGES, fit, stage_at

if TYPE_CHECKING:
    from tests.golden.adapters import Adapter
    from tests.golden.compare import Case, Tensors
    from workers.contracts import Prior

__all__ = ["CASES"]

LATENT_SCALE = 0.18215
MVDREAM_STEPS, VIEWS = 10_000, 4
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


class GivenPrior:
    """The fake networks of a case's document; `noise_pred` is what its U-Net answers, by our order of rows."""

    schedule = linear_schedule()
    latent_range = None
    image_px = 32

    def __init__(self, noise_pred: Tensor, A: Tensor | None = None, Bm: Tensor | None = None) -> None:
        self.noise_pred, self.A, self.Bm = noise_pred, A, Bm
        self.views_per_call, *self.latent_shape = noise_pred.shape[1:]

    def encode_text(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, 1)

    def composite(self, views: Views) -> Tensor:
        return views.rgb

    @asked("encode")
    def encode(self, views: Views) -> Tensor:
        pooled = avg_pool2d((2 * views.rgb - 1).flatten(0, 1), 8)
        return LATENT_SCALE * torch.einsum("zc,vchw->vzhw", self.A, pooled).unflatten(0, views.rgb.shape[:2])

    @asked("predict")
    def predict(self, latents: Tensor, t: Tensor, text: Tensor, cameras: Cameras) -> Prediction:
        return Prediction(self.noise_pred, x0_from_noise(latents, self.noise_pred, t, self.schedule))

    @asked("decode")
    def decode(self, latents: Tensor) -> Tensor:
        rgb = torch.einsum("cz,gvzhw->gvchw", self.Bm, latents / LATENT_SCALE)
        large = rgb.repeat_interleave(8, -1).repeat_interleave(8, -2)
        return (0.5 * large + 0.5).clamp(0, 1)


class GivenReward:
    """The fake reward of the DreamFL case: a linear function of the small picture, the mean of a group's views."""

    name = "given"

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    @asked("score")
    def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Scores:
        images = images.detach().requires_grad_()
        large = interpolate(images.flatten(0, 1), size=(224, 224), mode="bicubic", antialias=True)
        small = adaptive_avg_pool2d((large - CLIP_MEAN) / CLIP_STD, 4).flatten(1)
        values = (small @ self.weights).unflatten(0, images.shape[:2]).mean(1, keepdim=True)
        (gradient,) = torch.autograd.grad(values.sum(), images)
        return Scores(values.detach(), gradient)


class GivenScores:
    """A judge whose scores of a pair (2, V) are given."""

    name = "given"

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.values = torch.stack([first, second]).float()

    @asked("score")
    def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Scores:
        return Scores(self.values, torch.zeros_like(images))


def mvdream_sds_recon(case: Case, tensors: Tensors) -> dict[str, Any]:
    config = case["config"]
    groups = _grouper(config["n_view"])
    prior = GivenPrior(groups(tensors["in.eps_out"]))
    noise = groups(tensors["in.noise"])
    answers = {}
    for name in (name for name in tensors if name.startswith("out.loss.")):
        t, rescale = name.removeprefix("out.loss.t").split(".rescale")
        knobs = SdsMethod(guidance_scale=constant(config["guidance_scale"]), rescale=float(rescale))
        latents = groups(tensors["in.latents"]).requires_grad_()
        loss = answer_at_once(distillation_loss(_scene(prior), _sample(latents, noise, int(t)), prior, knobs))
        (gradient,) = torch.autograd.grad(loss, latents)
        answers |= {
            f"out.loss.t{t}.rescale{rescale}": loss,
            f"out.grad.t{t}.rescale{rescale}": gradient.flatten(0, 1),
            f"out.grad_norm.t{t}.rescale{rescale}": gradient.norm(),
        }
    return answers


def dreamfl(case: Case, tensors: Tensors) -> dict[str, Any]:
    config = case["config"]
    groups = _grouper(config["n_view"])
    prior = GivenPrior(groups(tensors["in.eps_out"]), tensors["aux.A"], tensors["aux.Bm"])
    noise, reward = groups(tensors["in.noise"]), GivenReward(tensors["aux.reward_w"])
    answers = {}
    for row in case["rows"]:
        form = f"guidance{row['guidance']}"
        knobs = DreamFlMethod(
            form=form, guidance_scale=constant(config["guidance_scale"]), rescale=config["recon_std_rescale"]
        )
        scene = _scene(prior, PUBLISHED[form].num_steps)
        scene.step = row["global_step"]
        rgb = tensors["in.rgb"].clone().requires_grad_()
        rendered = groups(rgb.permute(0, 3, 1, 2))
        views = Views(rendered, rendered, rendered, _cameras(len(rendered)))
        views = fit(views, config["image_size"])
        sample = _sample(prior.encode(views).now(), noise, row["t"])
        loss = answer_at_once(released_loss(scene, sample, views.rgb, prior, knobs, reward))
        (gradient,) = torch.autograd.grad(loss, rgb, retain_graph=True)
        sds = SdsMethod(guidance_scale=knobs.guidance_scale, rescale=knobs.rescale)
        alone = answer_at_once(distillation_loss(scene, sample, prior, sds))
        key = f"g{row['guidance']}.step{row['global_step']}.t{row['t']}"
        answers |= {
            f"out.loss.{key}": loss,
            f"out.grad_rgb.{key}": gradient,
            f"out.grad_norm.{key}": torch.autograd.grad(alone, sample.latents)[0].norm(),
        }
    return answers


def dreamdpo(case: Case, tensors: Tensors) -> dict[str, Any]:
    config = case["config"]
    first, first_negative, second, second_negative = tensors["in.eps_out"].chunk(4)
    prior = GivenPrior(torch.stack([first, second, first_negative, second_negative]), Bm=tensors["aux.Bm"])
    noise = torch.stack([tensors["in.noise_1"], tensors["in.noise_2"]])
    judge = GivenScores(tensors["in.score_1"], tensors["in.score_2"])
    answers = {}
    for row in case["rows"]:
        knobs = DreamDpoMethod(
            form="released", tau=row["beta_dpo"], guidance_scale=constant(config["guidance_scale"])
        )
        second_judge = None
        if row["ai_feedback"]:
            # The negative branch counts faults: fewer is better.
            sign = -1 if row["neg_prompt"] else 1
            second_judge = GivenScores(sign * tensors["in.ai_score_1"], sign * tensors["in.ai_score_2"])
        latents = tensors["in.latents"].clone()[None].requires_grad_()
        sample = _sample(latents, noise, row["t"])
        loss = answer_at_once(dreamdpo_loss(_scene(prior), sample, prior, knobs, (judge, second_judge)))
        gradient = torch.autograd.grad(loss, latents)[0][0] * len(latents[0])
        answers |= {
            f"out.loss.{row['name']}": loss,
            f"out.grad_latents.{row['name']}": gradient,
            f"out.grad_norm.{row['name']}": gradient.norm(),
        }
    return answers


def calculate_weight(case: Case, tensors: Tensors) -> dict[str, Any]:
    return {"rows.*.weight": [digit_weight(row["sds_loss"], row["reward_loss"]) for row in case["rows"]]}


def schedules(case: Case, tensors: Tensors) -> dict[str, Any]:
    steps = case["steps"]
    values = []
    for row in case["C_values"]:
        *first, start, end, last = row["spec"]
        ramp = Ramp(start=start, end=end, begin=(first or [0])[0] / last)
        values.append([ramp.at_step(step, last) for step in steps])
    t_min, t_max = values[:2]
    windows = [list(time_window(linear_schedule(), *ends)) for ends in zip(t_min, t_max, strict=True)]
    stages = [stage_at(MVDREAM_STAGES, row["step"], MVDREAM_STEPS) for row in case["camera_dataset_by_step"]]
    sizes = [stage.render_px for stage in stages]
    return {
        "C_values.*.values": values,
        "t_range_inclusive_[min_step,max_step]": windows,
        "camera_dataset_by_step.*.height": sizes,
        "camera_dataset_by_step.*.width": sizes,
        "camera_dataset_by_step.*.batch_size": [VIEWS * stage.num_groups for stage in stages],
    }


def _grouper(num_views: int) -> Any:
    return lambda rows: rows.clone().unflatten(0, (-1, num_views))


def _cameras(groups: int) -> Cameras:
    return Cameras(torch.eye(4).expand(groups, 4, 4, 4), torch.full((groups, 4), 40.0))


def _sample(latents: Tensor, noise: Tensor, t: int) -> Sample:
    return Sample(latents, _cameras(len(latents)), torch.full((len(noise),), t), noise)


def _scene(prior: Prior, steps_total: int = 1) -> Scene:
    """A scene of whose field nothing is asked."""

    async def no_method(*_: object) -> Tensor:
        raise NotImplementedError

    return Scene(
        prompt="",
        prior=prior,
        method=no_method,
        field=VoxelField(coarse=2, fine=2),
        rig=CameraRig(),
        seed=0,
        steps_total=steps_total,
    )


CASES: dict[str, Adapter] = {
    "mvdream_sds_recon": mvdream_sds_recon,
    "dreamfl": dreamfl,
    "dreamdpo": dreamdpo,
    "calculate_weight": calculate_weight,
    "schedules": schedules,
}
