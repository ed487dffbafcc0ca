from __future__ import annotations

import torch

from service.jobs.spec import DreamFlMethod, SdsMethod
from tests.unit.workers.small_scenes import TinyReward, ball_prior, make_scene
from workers.cameras import CameraRig, Cameras
from workers.contracts import Views
from workers.engine import Engine
from workers.fields.voxel import VoxelField
from workers.methods import make_method
from workers.scene import Scene
from workers.stages import MVDREAM_STAGES, Stage, fit, stage_at, supersampled


def test_the_published_stages_change_at_the_published_step() -> None:
    stages = [stage_at(MVDREAM_STAGES, step, 10_000) for step in (0, 4_999, 5_000, 9_999)]
    assert [(stage.render_px, stage.num_groups) for stage in stages] == [(64, 2), (64, 2), (256, 1), (256, 1)]


def test_supersampling_begins_in_the_middle() -> None:
    assert [stage_at(supersampled(16), step, 10).render_px for step in (0, 4, 5, 9)] == [16, 16, 32, 32]


def views(px: int) -> Views:
    def ramp(channels: int) -> torch.Tensor:
        columns = (torch.arange(px, dtype=torch.float64) + 0.5) / px
        return columns.expand(2, 4, channels, px, px).clone()

    cameras = Cameras(torch.eye(4).expand(2, 4, 4, 4), torch.full((2, 4), 40.0))
    return Views(ramp(3), ramp(1), ramp(1), cameras)


def test_renders_are_averaged_or_enlarged_to_what_the_prior_wants() -> None:
    for px in (4, 8, 16):
        fitted = fit(views(px), 8)
        for got, want in zip(fitted[:3], views(8)[:3], strict=True):
            # A linear ramp stays one, but for the edge, beyond which nothing is known.
            torch.testing.assert_close(got[..., 1:-1], want[..., 1:-1])
    same = views(8)
    assert fit(same, 8) is same


def test_two_groups_are_optimized_together() -> None:
    prior = ball_prior()
    seen: list[torch.Size] = []
    prior.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    for knobs in (SdsMethod(), DreamFlMethod(), DreamFlMethod(form="guidance2")):
        seen.clear()
        scene = Scene(
            prompt="red",
            prior=prior,
            method=make_method(knobs, TinyReward()),
            field=VoxelField(coarse=10, fine=14),
            rig=CameraRig(),
            seed=0,
            steps_total=4,
            num_samples=12,
            stages=(Stage(0.0, 8, num_groups=2), Stage(0.5, 16)),
        )
        engine = Engine()
        engine.admit(scene)
        for _ in range(4):
            (outcome,) = engine.step()
            assert outcome.error is None
        assert [shape[:2] for shape in seen] == [(4, 4), (4, 4), (2, 4), (2, 4)]
        assert {shape[-1] for shape in seen} == {16}


def test_a_scene_is_supersampled_unless_it_is_told_otherwise() -> None:
    scene = make_scene(ball_prior(), make_method(SdsMethod(), None))
    assert scene.stages == supersampled(16)
