from __future__ import annotations

import json
import struct

import pytest
import safetensors.torch
import torch

from tests.unit.workers.small_scenes import TinyReward, ball_prior, make_scene, methods_of_three, run
from workers.scene import CheckpointError, NanDivergence, Scene, load_checkpoint, save_checkpoint


def scene_of(method: str = "sds", steps_total: int = 60, seed: int = 4) -> Scene:
    return make_scene(
        ball_prior(), methods_of_three(TinyReward())[method], steps_total=steps_total, seed=seed
    )


def assert_bit_equal(one: Scene, other: Scene) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert (a.step, a.spec_hash) == (b.step, b.spec_hash)
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor, b.tensors[name]), name


# Steps 20 and 40 look at the occupancy, step 30 refines the grid.
@pytest.mark.parametrize("pause", [1, 17, 20, 29, 30, 31, 45])
@pytest.mark.parametrize("method", ["sds", "dreamdpo"])
def test_a_resumed_scene_is_bit_equal_to_an_undisturbed_one(method: str, pause: int) -> None:
    undisturbed = scene_of(method)
    curve = run(undisturbed, 60)
    first = scene_of(method)
    begun = run(first, pause)
    resumed = scene_of(method, seed=4)
    resumed.load_state_dict(load_checkpoint(save_checkpoint(first)))
    assert begun + run(resumed, 60) == curve
    assert_bit_equal(resumed, undisturbed)


def test_a_checkpoint_does_not_disturb_and_does_not_follow_its_scene() -> None:
    scene = scene_of()
    run(scene, 5)
    data = save_checkpoint(scene)
    state = scene.state_dict()
    run(scene, 8)
    restored = scene_of()
    restored.load_state_dict(load_checkpoint(data))
    assert restored.step == state.step == 5
    run(restored, 8)
    assert_bit_equal(restored, scene)


def test_a_scene_goes_back_in_time_when_told_to() -> None:
    scene = scene_of()
    run(scene, 10)
    data = save_checkpoint(scene)
    curve = run(scene, 60)
    scene.load_state_dict(load_checkpoint(data))
    assert run(scene, 60) == curve


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_a_torn_checkpoint_is_refused(keep: int) -> None:
    data = save_checkpoint(scene_of())
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load_checkpoint(data[:keep])


def test_bytes_that_are_none_of_ours_are_refused() -> None:
    foreign = safetensors.torch.save({"weight": torch.zeros(3)}, {"format": "pt"})
    with pytest.raises(CheckpointError, match="found a safetensors file of format 'pt'"):
        load_checkpoint(foreign)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load_checkpoint(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(CheckpointError, match="format None"):
        load_checkpoint(safetensors.torch.save({"weight": torch.zeros(3)}))


def test_another_jobs_checkpoint_is_refused() -> None:
    data = save_checkpoint(scene_of(steps_total=60))
    with pytest.raises(CheckpointError, match="belongs to specification 'small' with 60 steps"):
        scene_of(steps_total=61).load_state_dict(load_checkpoint(data))
    other = scene_of()
    other.spec_hash = "other"
    with pytest.raises(CheckpointError, match="expected 'other'"):
        other.load_state_dict(load_checkpoint(data))


def test_a_checkpoint_that_lacks_a_part_is_refused() -> None:
    scene = scene_of()
    state = load_checkpoint(save_checkpoint(scene))
    del state.tensors["field.raw_color"]
    with pytest.raises(CheckpointError, match="raw_color"):
        scene.load_state_dict(state)


def test_the_header_tells_step_and_specification_to_anyone() -> None:
    scene = scene_of()
    run(scene, 3)
    data = save_checkpoint(scene)
    (size,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    assert json.loads(metadata["scene"]) == {"step": 3, "steps_total": 60, "spec_hash": "small"}


def test_same_seed_same_views_other_seed_other_views() -> None:
    one, same, other = (scene_of(seed=seed).render() for seed in (1, 1, 2))
    assert torch.equal(one.rgb, same.rgb)
    assert not torch.equal(one.cameras.c2w, other.cameras.c2w)


def test_nan_in_a_reading_is_named_with_its_step() -> None:
    scene = scene_of()
    run(scene, 2)
    scene.record("reward", torch.tensor(float("nan")))
    with pytest.raises(NanDivergence, match="the reward is not a finite number at step 2") as caught:
        scene.check_loss(torch.tensor(1.0))
    assert (caught.value.step, caught.value.what) == (2, "reward")


def test_an_infinite_gradient_is_named_and_changes_nothing() -> None:
    scene = scene_of()
    scene.render()
    before = [parameter.clone() for _, parameter in scene.field.named_parameters()]
    for _, parameter in scene.field.named_parameters():
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad[0, 0, 0, 0, 0] = torch.inf
    with pytest.raises(NanDivergence, match="gradient of raw_color"):
        scene.descend()
    assert scene.step == 0
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, scene.field.named_parameters(), strict=True))


def test_a_finished_scene_has_no_further_step() -> None:
    scene = scene_of(steps_total=2)
    run(scene, 2)
    assert scene.finished
    with pytest.raises(AssertionError, match="finished"):
        scene.render()
