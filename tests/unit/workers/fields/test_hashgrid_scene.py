"""A hash grid as a scene trains it."""

from __future__ import annotations

import torch

from service.jobs.spec import SdsMethod
from tests.unit.workers.small_scenes import TinyReward, ball_prior, constant, run
from workers.cameras import CameraRig
from workers.fields.hash_encoding import GridSizes
from workers.fields.hashgrid import HashGridField, HashGridSizes, HashGridTraining
from workers.methods import make_method
from workers.regularizers import Penalties
from workers.scene import Scene, load_checkpoint, save_checkpoint

SIZES = HashGridSizes(GridSizes(4, 2, 10, 4, 1.6), hidden_width=16, occupancy_cells=8)


def scene_of() -> Scene:
    method = make_method(SdsMethod(guidance_scale=constant(1.0)), TinyReward())
    training = HashGridTraining(encoding_rate=0.1, network_rate=0.01, background=False)
    return Scene(
        prompt="red",
        prior=ball_prior(),
        method=method,
        field=HashGridField(SIZES, training),
        rig=CameraRig(),
        seed=0,
        steps_total=200,
        num_samples=12,
    )


def test_a_prior_pulls_it_towards_its_picture() -> None:
    losses = run(scene_of(), 30)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_resumed_scene_goes_on_bit_for_bit_across_a_probe() -> None:
    whole, first = scene_of(), scene_of()
    run(whole, 20)
    run(first, 14)
    resumed = scene_of()
    resumed.load_state_dict(load_checkpoint(save_checkpoint(first)))
    run(resumed, 20)
    for name, tensor in whole.field.state_dict().items():
        assert torch.equal(tensor, resumed.field.state_dict()[name]), name


def test_a_scene_shows_its_field_with_the_look_that_it_draws() -> None:
    scene = scene_of()
    training = HashGridTraining(shaded=True, penalties=Penalties((10, 1000, 0.5), 1.0, 1.0, 1.0, unit=1e-3))
    scene.field = HashGridField(SIZES, training)
    scene.optimizer, scene.step = scene.field.new_optimizer(), 31
    views = scene.render()
    assert views.surface is not None
    assert torch.equal(views.opacity, torch.ones_like(views.opacity))
    run(scene, 35)
