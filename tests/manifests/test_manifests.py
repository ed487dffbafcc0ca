from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.manifests import __main__ as manifests
from tests.manifests.pods import pods_of
from tests.manifests.rendering import K8S, OVERLAYS, of_kind, render

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.manifests.rendering import Object

    Overlay = Callable[[str], list[Object]]


# Ray's own use of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_is_valid(overlay: Overlay, name: str) -> None:
    assert manifests.faults_of(overlay(name)) == []


def test_the_overlays_are_those_that_are_promised() -> None:
    assert set(OVERLAYS) == {"single-cluster", "production", "local-cpu"}


def test_gpu_workers_are_the_same_in_both_layouts(overlay: Overlay) -> None:
    def groups(name: str) -> list[Object]:
        found = [
            pod.group for pod in pods_of(overlay(name)) if pod.group.get("groupName", "").startswith("gpu")
        ]
        for group in found:
            del group["template"]["metadata"]["labels"]["dreamserve/cluster"]
        return found

    assert groups("production") == groups("single-cluster") != []


def test_an_upgrade_of_the_api_leaves_the_workers_alone_in_production(overlay: Overlay) -> None:
    where = {
        pod.where.split()[0]
        for pod in pods_of(overlay("production"))
        if pod.labels.get("dreamserve/cluster") == "pool"
    }
    assert where == {"RayCluster/dreamserve-pool"}


def test_one_line_of_kustomize_replaces_our_images_everywhere(overlay: Overlay, tmp_path: Path) -> None:
    overlay("production")  # or skips
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "my").mkdir()
    (tmp_path / "my/kustomization.yaml").write_text(
        "resources: [../k8s/overlays/production]\n"
        "images:\n"
        "  - {name: dreamserve-frontend, newName: registry.example.com/dreamserve-frontend}\n"
        "  - {name: dreamserve-gpu, newName: registry.example.com/dreamserve-gpu}\n"
    )
    pods = [pod for pod in pods_of(render(tmp_path / "my")) if pod.role != "other"]
    assert len(pods) == 5
    assert all(pod.containers[0]["image"].startswith("registry.example.com/dreamserve-") for pod in pods)


def test_a_mistake_in_a_file_is_said_and_is_the_exit_status(
    overlay: Overlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    overlay("local-cpu")  # or skips
    shutil.copytree(K8S, tmp_path / "k8s")
    pool = tmp_path / "k8s/overlays/production/pool.yaml"
    pool.write_text(pool.read_text().replace("minReplicas:", "minReplica:", 1))
    monkeypatch.setattr(manifests, "K8S", tmp_path / "k8s")
    assert manifests.main() > 0
    said = capsys.readouterr().out
    assert "RayCluster/dreamserve-pool" in said
    assert "minReplica" in said
    assert "local-cpu: 20 objects, no fault" in said


def test_every_secret_is_by_reference_and_in_the_example(overlay: Overlay) -> None:
    assert not [one for name in OVERLAYS for one in of_kind(overlay(name), "Secret")]
