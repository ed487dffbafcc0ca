"""Alerts and dashboards of an overlay: do they read metrics that exist, and say what to do?"""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tests.manifests.metric_names import metric_names, names_in
from tests.manifests.rendering import K8S, ROOT, of_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.manifests.rendering import Object

__all__ = ["alerts_of", "dashboards_of", "monitoring_faults", "queries_of", "runbook_headings"]

SEVERITIES = {"critical", "warning"}
COLUMNS = 24


def monitoring_faults(objects: list[Object]) -> list[str]:
    """Say what is wrong with the alerts and dashboards, as far as one can see without Prometheus."""
    faults = [
        f"alert {alert['alert']}: {fault}" for alert in alerts_of(objects) for fault in _alert_faults(alert)
    ]
    dashboards = dashboards_of(objects)
    uids = [board["uid"] for board in dashboards.values()]
    if len(set(uids)) < len(uids):
        faults.append(f"dashboards share a uid: {uids}")
    for name, board in dashboards.items():
        faults += [f"dashboard {name}: {fault}" for fault in _dashboard_faults(board)]
    return faults


def alerts_of(objects: list[Object]) -> list[Object]:
    """Collect all alerting rules."""
    groups = [group for one in of_kind(objects, "PrometheusRule") for group in one["spec"]["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def dashboards_of(objects: list[Object]) -> dict[str, Any]:
    """Collect Grafana's dashboards by file name; raises ValueError for what is no JSON."""
    maps = [
        one
        for one in of_kind(objects, "ConfigMap")
        if "grafana_dashboard" in one["metadata"].get("labels", {})
    ]
    return {name: json.loads(text) for one in maps for name, text in one["data"].items()}


def queries_of(board: dict[str, Any]) -> list[str]:
    """Collect the expressions of a dashboard, with Grafana's own variables filled in."""
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [one.replace("$__rate_interval", "5m") for one in expressions]


def runbook_headings() -> set[str]:
    """Name the anchors of k8s/README.md, as a forge makes them of its headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", (K8S / "README.md").read_text())
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def _alert_faults(alert: Object) -> Iterator[str]:
    yield from (f"there is no metric {name}" for name in sorted(names_in(alert["expr"]) - metric_names()))
    if not names_in(alert["expr"]):
        yield f"it reads no metric of ours: {alert['expr']}"
    if alert["labels"].get("severity") not in SEVERITIES:
        yield f"its severity must be one of {sorted(SEVERITIES)}"
    notes = alert["annotations"]
    if not {"summary", "description", "runbook_url"} <= notes.keys():
        yield "it needs a summary, a description and a runbook_url"
        return
    file, _, heading = notes["runbook_url"].partition("#")
    if not (ROOT / file).is_file() or heading not in runbook_headings():
        yield f"there is no runbook {notes['runbook_url']}"


def _dashboard_faults(board: dict[str, Any]) -> Iterator[str]:
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    if len(set(ids)) < len(ids):
        yield f"panels share an id: {ids}"
    if not any(one["type"] == "datasource" for one in board["templating"]["list"]):
        yield "its Prometheus must be a variable"
    for one in panels:
        if one["gridPos"]["x"] + one["gridPos"]["w"] > COLUMNS:
            yield f"panel '{one['title']}' is wider than the page"
        if any(each.get("datasource", {}).get("uid") != "${datasource}" for each in (one, *one["targets"])):
            yield f"panel '{one['title']}' names a datasource of somebody's own"
    for one, other in combinations(panels, 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            yield f"panels '{one['title']}' and '{other['title']}' overlap"
    unknown = {name for query in queries_of(board) for name in names_in(query)} - metric_names()
    yield from (f"there is no metric {name}" for name in sorted(unknown))


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )
