"""Alerts before a real promtool: each fires when it should, and only then."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.manifests.monitoring import alerts_of
from tests.manifests.rendering import of_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.manifests.rendering import Object

# Ray's own use of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# As strings: to YAML the series 0x90 is a number in base 16.
CASES: dict[str, Any] = yaml.load((Path(__file__).parent / "alert_cases.yaml").read_text(), yaml.BaseLoader)
LOOK_MIN = 90


@pytest.fixture
def groups(overlay: Callable[[str], list[Object]]) -> dict[str, Any]:
    """The rules as Prometheus reads them: the operator takes them out of their object."""
    (one,) = of_kind(overlay("production"), "PrometheusRule")
    spec: dict[str, Any] = one["spec"]
    return spec


def promtool(program: str, *arguments: object) -> tuple[int, str]:
    answer = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    return answer.returncode, answer.stdout + answer.stderr


def test_rules_are_sound(groups: dict[str, Any], tmp_path: Path, needed: Callable[[str], str]) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    status, said = promtool(needed("promtool"), "check", "rules", tmp_path / "rules.yaml")
    assert status == 0, said


def test_every_alert_has_its_cases(overlay: Callable[[str], list[Object]]) -> None:
    names = [alert["alert"] for alert in alerts_of(overlay("production"))]
    assert len(set(names)) == len(names) >= 12
    assert set(CASES) == set(names)
    assert all(set(case) == {"fires", "quiet"} for case in CASES.values())


def test_each_alert_fires_once_when_it_should_and_only_then(
    overlay: Callable[[str], list[Object]], tmp_path: Path, needed: Callable[[str], str]
) -> None:
    files = [_cases_file(tmp_path, rule) for rule in alerts_of(overlay("production"))]
    status, said = promtool(needed("promtool"), "test", "rules", *files)
    assert status == 0, said


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("DreamserveQueueNearlyFull", "max(", "sum("),  # each frontend tells the same number
        ("DreamserveJobPoisoned", "or vector(0)", ""),  # the series begins with the event
        ("DreamserveDown", "absent(", "sum("),
    ],
)
def test_a_wrong_rule_is_found(
    overlay: Callable[[str], list[Object]],
    tmp_path: Path,
    needed: Callable[[str], str],
    name: str,
    right: str,
    wrong: str,
) -> None:
    (rule,) = [one for one in alerts_of(overlay("production")) if one["alert"] == name]
    assert right in rule["expr"]
    rule["expr"] = rule["expr"].replace(right, wrong)
    assert promtool(needed("promtool"), "test", "rules", _cases_file(tmp_path, rule))[0] == 1


def _cases_file(folder: Path, rule: Object) -> Path:
    """Write a test for promtool of one rule alone: with all of them in each, it would take 25 times as long."""
    name = rule["alert"]
    (folder / f"{name}-rule.yaml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [rule]}]}))
    file = folder / f"{name}.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "rule_files": [f"{name}-rule.yaml"],
                "evaluation_interval": "1m",
                "tests": list(_promtool_tests(name, CASES[name])),
            }
        )
    )
    return file


def _promtool_tests(name: str, case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for kind, num in (("fires", 1), ("quiet", 0)):
        yield {
            "name": f"{name} {kind}",
            "interval": "1m",
            "input_series": [
                {"series": each, "values": values}
                for series, values in case[kind]["series"].items()
                for each in _on_two_frontends(series)
            ],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{case[kind].get('at', LOOK_MIN)}m",
                    "exp_samples": [{"labels": "{}", "value": num}],
                }
            ],
        }


def _on_two_frontends(series: str) -> list[str]:
    name, _, labels = series.rstrip("}").partition("{")
    if not name.startswith("dreamserve_"):
        return [series]
    return [f'{name}{{{labels}{"," if labels else ""}instance="{one}"}}' for one in "ab"]
