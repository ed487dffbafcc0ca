"""The images: what hadolint says, who runs in them, and what is in the frontend's."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.manifests.rendering import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def stages() -> dict[str, tuple[str, str]]:
    """Each stage of the Dockerfile: what it is built from, and its lines."""
    parts = re.split(r"(?m)^FROM (\S+) AS (\S+)$", DOCKERFILE)[1:]
    return {name: (source, lines) for source, name, lines in zip(*[iter(parts)] * 3, strict=True)}


def test_hadolint_finds_nothing(needed: Callable[[str], str]) -> None:
    answer = subprocess.run([needed("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "")


def test_bases_are_pinned() -> None:
    outside = {source for source, _ in stages().values() if source not in stages()}
    assert outside
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]+", source) for source in outside)


@pytest.mark.parametrize("target", ["frontend", "gpu"])
def test_image_is_small_in_layers_and_nobody_is_root_in_it(target: str) -> None:
    source, lines = stages()[target]
    assert source == "run"
    assert re.findall(r"(?m)^USER (.+)$", stages()["run"][1] + lines) == ["1000:1000"]
    # The build's tools and caches stay in the stages before.
    assert re.findall(r"(?m)^(?:RUN|COPY|ADD) .*", lines) == [
        f"COPY --from=build-{target} /opt/dreamserve /opt/dreamserve"
    ]


def test_installs_are_held_to_the_constraints() -> None:
    installs = re.findall(r"pip install (.+?)(?: \\| &&|\n)", DOCKERFILE)
    assert len(installs) == 6
    for one in installs:
        assert "-c constraints.txt" in one or "==" in one or "--no-deps /wheel/" in one, one


def kept_by_dockerignore() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return {line[1:] for line in lines if line.startswith("!")}


def test_what_is_copied_is_not_ignored() -> None:
    kept = kept_by_dockerignore()
    copied = [line.split()[:-1] for line in re.findall(r"(?m)^COPY (?!--from)(.+)$", DOCKERFILE)]
    assert {one for names in copied for one in names} == kept
    assert all((ROOT / one).exists() for one in kept)


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name((one := Requirement(line)).name): one for line in lines}


def test_the_frontends_dependencies_are_a_part_of_the_projects() -> None:
    project = PROJECT["project"]
    all_lines = [*project["dependencies"], *project["optional-dependencies"]["postgres"]]
    for name, one in requirements(PROJECT["dependency-groups"]["frontend"]).items():
        other = requirements(all_lines)[name]
        assert (one.specifier, one.extras - other.extras) == (other.specifier, set()), name
    assert "torch" not in requirements(PROJECT["dependency-groups"]["frontend"])


def test_the_frontend_has_all_that_service_imports() -> None:
    """What comes along with a dependency (starlette with fastapi, say) counts too."""
    there, new = set(), set(requirements(PROJECT["dependency-groups"]["frontend"]))
    while new:
        there |= new
        found = {name for dist in new for name in _required(dist)}
        new = found - there
    distributions = importlib.metadata.packages_distributions()
    for module in _imported_by_service():
        names = {canonicalize_name(one) for one in distributions.get(module, [])}
        assert names & there, (
            f"service imports {module}: add its distribution to [dependency-groups] frontend"
        )


def _required(dist: str) -> list[str]:
    lines = importlib.metadata.requires(dist) if _is_installed(dist) else []
    found = [Requirement(line) for line in lines or []]
    return [
        canonicalize_name(one.name)
        for one in found
        if one.marker is None or one.marker.evaluate({"extra": ""})
    ]


def _is_installed(dist: str) -> bool:
    try:
        importlib.metadata.distribution(dist)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _imported_by_service() -> set[str]:
    modules: set[str] = set()
    for file in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add((node.module or "").partition(".")[0])
    return modules - set(sys.stdlib_module_names) - {"service"}


def test_the_heads_of_the_cluster_start_the_pool_without_torch() -> None:
    """They run the image `frontend`: the command `dreamserve pool`, and the PoolScaler."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import service.http.app, workers.cluster, workers.main, workers.pool\n"
        "from service.settings import Settings\n"
        "workers.pool.shared_rewards(Settings())\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is gone after the test, which may fill it with gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def install(target: str, folder: Path) -> Path:
    """Run an image's install steps in a fresh virtual environment, on a copy of what would be sent; its Python."""
    source, environment, wheels = folder / "src", folder / "env", folder / "wheel"
    source.mkdir()
    for name in kept_by_dockerignore():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    path = os.pathsep.join(
        [str(environment / "bin"), str(Path(sys.executable).parent), os.environ["PATH"], "/usr/bin", "/bin"]
    )
    for stage in ("build", "wheel", f"build-{target}"):
        lines = stages()[stage][1].replace("\\\n", " ")
        for step in re.findall(r"(?m)^RUN (?:--mount=\S+ )?(.+)$", lines):
            here = step.replace("/opt/dreamserve", str(environment)).replace("/wheel", str(wheels))
            answer = subprocess.run(
                here, shell=True, cwd=source, env=os.environ | {"PATH": path}, capture_output=True, text=True
            )
            assert answer.returncode == 0, f"{here}\n{answer.stderr}"
    return environment / "bin/python"


def run_in(folder: Path, python: Path, code: str) -> list[str]:
    """What a program prints in an environment, away from this tree; its words."""
    answer = subprocess.run([str(python), "-c", code], cwd=folder, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.split()


@pytest.mark.slow
def test_the_frontends_install_steps_make_an_environment_without_torch(folder: Path) -> None:
    """No image is built here. It takes half a minute of an idle machine, and 600 MB."""
    python = install("frontend", folder)
    code = (
        "import importlib.util, service.http.api, service.http.app, workers.cluster, workers.main, workers.pool\n"
        "import psycopg\n"
        "print(importlib.util.find_spec('torch'), service.__file__)"
    )
    torch, file = run_in(folder, python, code)
    assert torch == "None"
    assert Path(file).is_relative_to(python.parents[1])


@pytest.mark.slow
@pytest.mark.skipif("FULL" not in os.environ, reason="installs torch anew: with FULL=1")
def test_the_gpu_images_install_steps_make_an_environment_that_loads_the_networks(folder: Path) -> None:
    python = install("gpu", folder)
    code = (
        "import psycopg, transformers, workers.networks, workers.pool, workers.worker\n"
        "from reward_models.tokens import clip_merges\n"
        "from service.settings import Settings\n"
        "assert clip_merges()\n"
        "can = workers.networks.load_networks(Settings(data_dir='data')).capabilities()\n"
        "print(*can.methods, workers.__file__)"
    )
    *methods, file = run_in(folder, python, code)
    assert {"sds", "dreamfl", "dreamdpo", "psd"} == set(methods)
    assert Path(file).is_relative_to(python.parents[1])
