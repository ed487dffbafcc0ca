"""What a worker of the embedded default holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.jobs.capabilities import embedded_capabilities
from service.settings import Settings
from workers.networks import load_networks

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_said_before_the_first_worker_is_what_it_can_do(tmp_path: Path) -> None:
    said, found = embedded_capabilities(), load_networks(Settings(data_dir=tmp_path)).capabilities()
    assert said.methods.keys() == found.methods.keys()
    assert said.mesh_formats == found.mesh_formats
    assert {name: facts.views for name, facts in said.priors.items()} == {
        name: facts.views for name, facts in found.priors.items()
    }
    told = {"differentiable", "multiview", "views", "typical", "steers"}
    for name, facts in said.rewards.items():
        assert facts.model_dump(include=told) == found.rewards[name].model_dump(include=told), name
