"""The overlays, rendered once; what needs a program that is not here skips, and fails in CI."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.manifests.rendering import K8S, kustomize, render

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.manifests.rendering import Object


@functools.cache
def _rendered(overlay: str) -> list[Object]:
    return render(K8S / "overlays" / overlay)


def _absent(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}; in CI it has to be")
    pytest.skip(what)


@pytest.fixture
def overlay() -> Callable[[str], list[Object]]:
    """Render an overlay; the copy is the test's own."""
    try:
        kustomize()
    except FileNotFoundError as error:
        _absent(str(error))
    return lambda name: copy.deepcopy(_rendered(name))


@pytest.fixture
def needed() -> Callable[[str], str]:
    """Find a program, also one that pip has installed beside Python."""

    def find(program: str) -> str:
        path = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if path is None:
            _absent(f"{program} is not here")
        assert path
        return path

    return find
