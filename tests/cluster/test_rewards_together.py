"""Jobs that follow different rewards, and several of them as one, on one pool at the same time."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from workers.weights import EMBEDDED_REWARDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.conftest import Up

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEERED = {
    "embedded-multiview": {"method": "dreamdpo", "rewards": [{"name": "embedded-multiview"}]},
    "embedded-alignment": {"method": "dreamfl", "rewards": [{"name": "embedded-alignment"}]},
    "ensemble": {
        "method": "dreamdpo",
        "rewards": [{"name": "embedded-multiview", "weight": 2}, {"name": "embedded-alignment"}],
    },
}


def test_different_rewards_and_an_ensemble_steer_at_the_same_time(up: Callable[..., Up]) -> None:
    service = up(DREAMSERVE_SLOTS_PER_WORKER="3")
    ids = {steered: service.submit(steps=40, referee=None, **fields) for steered, fields in STEERED.items()}
    jobs = {steered: service.succeeded(job_id) for steered, job_id in ids.items()}
    assert max(job["started_at"] for job in jobs.values()) < min(job["ended_at"] for job in jobs.values())
    for steered, job in jobs.items():
        assert {point["reward"]["name"] for point in job["score_series"]} == {steered}
        assert {"embedded-multiview", "consistency3d"} <= job["result"]["candidates"][0]["scores"].keys() | {
            (job["result"]["candidates"][0]["referee"] or {"name": ""})["name"]
        }

    # A live worker has spoken by now.
    told = {one["name"]: one for one in service.http.get("/v1/rewards").json()["items"]}
    for name, file in EMBEDDED_REWARDS.items():
        assert told[name]["weights"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        assert told[name]["available"]
        assert told[name]["license"] == "Apache-2.0"
    missing = [one for one in told.values() if not one["available"]]
    assert {"reward3d", "hpsv2.1", "multimodal"} <= {one["name"] for one in missing}
    assert all(one["missing"] and one["how"] for one in missing)
