"""Is every object well-formed? No key that its kind does not have, no wrong type, nothing required left out.

An API server drops what it does not know without a word, so a misspelt key would change nothing, silently.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

from tests.manifests.rendering import name_of

if TYPE_CHECKING:
    from tests.manifests.rendering import Object

__all__ = ["kind_faults"]

HERE = Path(__file__).parent
RAY_KINDS = json.loads((HERE / "ray_kinds.json").read_text())["kinds"]
OPERATOR_KINDS = yaml.safe_load((HERE / "operator_kinds.yaml").read_text())
"""The Prometheus operator's kinds, of which only the fields that k8s/ uses are known."""


def kind_faults(one: Object) -> list[str]:
    """Say what is wrong with the shape of an object."""
    kind = f"{one.get('apiVersion')} {one.get('kind')}"
    schema = RAY_KINDS.get(kind) or OPERATOR_KINDS.get(kind)
    faults = _core_faults(json.dumps(one)) if schema is None else _custom_faults(one, schema)
    return [f"{name_of(one)}: {fault}" for fault in faults]


@functools.lru_cache(
    maxsize=1_024
)  # one validation takes 50 ms, and most objects are the same in all overlays
def _core_faults(text: str) -> list[str]:
    one = json.loads(text)
    try:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return [f"nobody knows the kind {one.get('kind')} of {one.get('apiVersion')}"]
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path)) or '(root)'}: {error.message}"]
    return []


def _custom_faults(one: Object, schema: dict[str, Any]) -> list[str]:
    errors = Draft202012Validator(schema).iter_errors(one)
    faults = [f"{'.'.join(map(str, error.absolute_path)) or '(root)'}: {error.message}" for error in errors]
    for where, kind, value in _embedded(one, schema):
        whole = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "embedded"}}
        whole |= {"template": value} if kind == "PodTemplate" else value
        faults += [f"{where}: {fault}" for fault in _core_faults(json.dumps(whole))]
    return faults


def _embedded(value: Any, schema: dict[str, Any], where: str = "") -> list[tuple[str, str, Any]]:
    """Find the core kinds inside a custom one: where, which kind, what."""
    if "core" in schema:
        return [(where, schema["core"], value)]
    found = []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _embedded(inner, schema.get("properties", {}).get(key, {}), f"{where}.{key}".strip("."))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            found += _embedded(inner, schema.get("items", {}), f"{where}.{index}")
    return found
