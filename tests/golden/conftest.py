"""One test per golden case of the folders named by `--golden-dir`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.adapters import NOT_YET, name_of

ROOT = Path(__file__).parents[2]
SHARED = (ROOT.parent / "shared" / "golden", ROOT.parent / "shared" / "golden_rewards")
COPY = Path(__file__).parent / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        action="append",
        type=Path,
        metavar="DIR",
        help="folder of golden cases (repeatable); default: the shared ones where present, and tests/golden/data",
    )


def pytest_configure(config: pytest.Config) -> None:
    for folder in config.getoption("golden_dir", None) or []:
        if not any(folder.glob("*.json")):
            raise pytest.UsageError(f"--golden-dir {folder}: there is no golden case (*.json) in it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        cases = _cases(_folders(metafunc.config))
        metafunc.parametrize("golden_case", list(cases.values()), ids=list(cases))


def _folders(config: pytest.Config) -> list[Path]:
    # pytest reads this file too late for its options when it was started from above this folder.
    asked: list[Path] | None = config.getoption("golden_dir", None)
    return [folder for folder in (*SHARED, COPY) if folder.is_dir()] if asked is None else asked


def _cases(folders: list[Path]) -> dict[str, Path]:
    """JSON files by test id: the stem, or folder/stem where another folder has a different case of that stem."""
    cases: dict[str, Path] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*.json"))):
        if name_of(file.stem) in NOT_YET:
            continue
        first = cases.setdefault(file.stem, file)
        if first is not file and not _same(first, file):
            cases[f"{file.parent.name}/{file.stem}"] = file
    return cases


def _same(one: Path, other: Path) -> bool:
    for pair in ((one, other), (one.with_suffix(".safetensors"), other.with_suffix(".safetensors"))):
        if len({file.read_bytes() if file.exists() else None for file in pair}) > 1:
            return False
    return True
