"""Dashboards before a real Prometheus: each query parses, and all that we measure is shown somewhere."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.manifests.metric_names import metric_names, names_in
from tests.manifests.monitoring import alerts_of, dashboards_of, queries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.manifests.rendering import Object

# Ray's own use of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

READY_S = 30


@pytest.fixture
def prometheus(tmp_path: Path, needed: Callable[[str], str]) -> Iterator[str]:
    """Where a Prometheus that scrapes nothing answers."""
    (tmp_path / "prometheus.yml").write_text("{}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [needed("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield _ready(f"http://{address}")
        finally:
            process.terminate()


def _ready(url: str) -> str:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            httpx.get(f"{url}/-/ready").raise_for_status()
            return url
        except httpx.HTTPError:
            assert time.monotonic() < deadline, f"Prometheus is not ready after {READY_S} s"
            time.sleep(0.1)


def test_prometheus_understands_every_query(prometheus: str, overlay: Callable[[str], list[Object]]) -> None:
    boards = dashboards_of(overlay("production"))
    assert set(boards) == {"service.json", "jobs.json", "quality.json", "cluster.json"}
    queries = [query for board in boards.values() for query in queries_of(board)]
    assert len(queries) > 60
    with httpx.Client(base_url=prometheus) as http:
        for query in [*queries, "sum(("]:
            answer = http.get("/api/v1/format_query", params={"query": query})
            assert answer.is_success == (query != "sum(("), f"{query}: {answer.text}"


def test_every_metric_of_ours_is_on_a_dashboard(overlay: Callable[[str], list[Object]]) -> None:
    objects = overlay("production")
    queries = [query for board in dashboards_of(objects).values() for query in queries_of(board)]
    queries += [alert["expr"] for alert in alerts_of(objects)]
    shown = {name for query in queries for name in names_in(query)}
    ours = {name for name in metric_names() if name.startswith(("dreamserve_", "ray_dreamserve_"))}
    # Of a histogram the buckets are enough.
    missing = {name for name in ours - shown if not name.endswith(("_sum", "_count"))}
    assert missing == set()


def test_names_are_found_in_an_expression_and_labels_are_not() -> None:
    expression = (
        'sum by (dreamserve_not) (rate(ray_a_total{x="dreamserve_no"}[5m])) / on (ray_y) max(dreamserve_b)'
    )
    assert names_in(expression) == {"ray_a_total", "dreamserve_b"}
