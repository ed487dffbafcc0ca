"""Which metrics there are: what the code really renders and registers, never a list kept by hand."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["metric_names", "names_in"]

_HISTOGRAM = ("_bucket", "_sum", "_count")
_IDENTIFIER = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NOISE = re.compile(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)')
"""Of an expression: strings, label matchers, ranges, and lists of labels, which hold no metric's name."""


def names_in(expression: str) -> set[str]:
    """Find the metrics that a PromQL expression reads; they alone begin with one of three prefixes here."""
    bare = _NOISE.sub(" ", expression)
    return {
        name for name in _IDENTIFIER.findall(bare) if name.startswith(("dreamserve_", "ray_", "autoscaler_"))
    }


@functools.cache
def metric_names() -> frozenset[str]:
    """Name every series that the store, the shared rewards, Ray's nodes, Serve and the autoscaler export."""
    return frozenset(_of_store() | _of_rewards() | _of_ray() | _of_autoscaler())


def _of_store() -> set[str]:
    """Render the metrics of an empty store. (A labeled counter has no series yet, but its family is named.)"""
    from service.jobs.store import JobStore
    from service.metrics import render_metrics

    with tempfile.TemporaryDirectory() as folder:
        store = JobStore(f"sqlite:///{Path(folder) / 'empty.sqlite3'}")
        try:
            text = render_metrics(store).decode()
        finally:
            store.close()
    names = set()
    for family in text_string_to_metric_families(text):
        if family.type == "histogram":
            names |= {family.name + suffix for suffix in _HISTOGRAM}
        else:
            names.add(family.name + ("_total" if family.type == "counter" else ""))
    return names


def _of_rewards() -> set[str]:
    """Read what a shared reward registers with Ray, which puts `ray_` before it."""
    from ray.util.metrics import Counter, Histogram

    from reward_models.actor import _Meters

    names = set()
    for meter in vars(_Meters("any")).values():
        suffixes = {Histogram: _HISTOGRAM, Counter: ("_total",)}.get(type(meter), ("",))
        names |= {f"ray_{meter.info['name']}{suffix}" for suffix in suffixes}
    return names


def _of_ray() -> set[str]:
    """Read the names that Ray's own Grafana dashboards query, and the gauges of its nodes."""
    import ray
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    folder = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards"
    texts = [file.read_text() for file in folder.glob("*_panels.py")]
    queried = {name for text in texts for name in re.findall(r"\bray_[a-z_]+", text)}
    return queried | {f"ray_{name}" for name in METRICS_GAUGES}


def _of_autoscaler() -> set[str]:
    from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics

    registry = CollectorRegistry()
    AutoscalerPrometheusMetrics(session_name="any", registry=registry)
    return {family.name for family in registry.collect()}
