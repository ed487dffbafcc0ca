"""Who may import whom: the picture of the architecture, held against the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "workers", "reward_models")

CORE = (
    "workers.cameras",
    "workers.contracts",
    "workers.diffusion",
    "workers.embedded",
    "workers.engine",
    "workers.fields",
    "workers.mesh",
    "workers.methods",
    "workers.priors",
    "workers.regularizers",
    "workers.render",
    "workers.scene",
    "workers.shading",
    "workers.stages",
)
TRAINERS = ("workers.embedded.export", "workers.embedded.train", "workers.embedded.train_rewards")
"""They train the rewards too, and are no part of what a job runs."""
RAY_FILES = (
    "service.http.app",
    "workers.cluster",
    "workers.pool",
    "workers.up",
    "reward_models.actor",
    "reward_models.train",
)


def _modules() -> dict[str, Path]:
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def _imports(file: Path) -> set[str]:
    """Modules that are imported at run time, also inside functions; not those under TYPE_CHECKING."""
    found: set[str] = set()

    class Reader(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            found.add(node.module or "")

    Reader().visit(ast.parse(file.read_text()))
    return found


def _within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


MODULES = _modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_the_architecture_allows(module: str) -> None:
    for imported in _imports(MODULES[module]):
        why = f"{module} must not import {imported}"
        if _within(module, "service"):
            assert not _within(imported, "workers", "reward_models", "torch"), why
        if _within(module, "reward_models"):
            assert not _within(imported, "workers", "service"), why
        if _within(module, "workers"):
            assert not _within(imported, "service.http") or module == "workers.up", why
        if _within(module, *CORE):
            assert not _within(imported, "service", "ray", "pydantic", "sqlalchemy"), why
            assert module in TRAINERS or not _within(imported, "reward_models"), why
        if _within(imported, "ray"):
            assert module in RAY_FILES, why


def test_the_embedded_prior_knows_neither_the_world_nor_its_grammar() -> None:
    for module in ("workers.priors.embedded", "workers.priors.embedded_unet"):
        assert not any(_within(imported, "workers.embedded") for imported in _imports(MODULES[module]))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import workers.main", ("torch", "ray", "sqlalchemy", "fastapi")),
        ("import service.http.api", ("torch", "ray")),
        ("import workers.engine, workers.embedded.train", ("ray", "pydantic", "sqlalchemy", "service")),
    ],
)
def test_import_brings_nothing_heavy_along(statement: str, absent: tuple[str, ...]) -> None:
    code = f"{statement}; import sys; print([name for name in {absent!r} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert answer.stdout.strip() == "[]"
