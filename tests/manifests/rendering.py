"""Render the overlays of `k8s/` as they would be applied: by kustomize itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

__all__ = ["K8S", "OVERLAYS", "ROOT", "Object", "kustomize", "name_of", "of_kind", "render"]

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = tuple(sorted(folder.name for folder in (K8S / "overlays").iterdir()))

Object = dict[str, Any]
"""A Kubernetes object as data."""


def kustomize() -> list[str]:
    """Find the program that renders, as the start of a command line; raises FileNotFoundError."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    raise FileNotFoundError(
        "neither kustomize nor kubectl is here to render k8s/: install kubectl 1.27 or newer (Debian's own is too old)"
    )


def render(folder: Path) -> list[Object]:
    """Render one overlay; raises ValueError with kustomize's words when it does not build."""
    answer = subprocess.run([*kustomize(), str(folder)], capture_output=True, text=True)
    if answer.returncode:
        raise ValueError(f"{folder.name} does not build: {answer.stderr.strip()}")
    return [one for one in yaml.load_all(answer.stdout, Loader=yaml.CSafeLoader) if one]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """Choose the objects of these kinds."""
    return [one for one in objects if one["kind"] in kinds]


def name_of(one: Object) -> str:
    """Name an object for people: `Service/dreamserve-redis`."""
    return f"{one.get('kind', '(no kind)')}/{one.get('metadata', {}).get('name', '(no name)')}"
