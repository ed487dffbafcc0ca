"""Cut KubeRay's custom resource definitions down to the facts that `ray_kinds.json` holds.

`python -m tests.manifests.crd_facts ray.io_rayclusters.yaml ray.io_rayservices.yaml > tests/manifests/ray_kinds.json`
renews them from a KubeRay release (helm-chart/kuberay-operator/crds). What is of a core kind (pod templates,
services) is left to the schemas of Kubernetes itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ABOUT", "cut"]

ABOUT = "From KubeRay's custom resource definitions (ray-project/kuberay, Apache-2.0), cut by crd_facts.py."
CORE = {
    "template": "PodTemplate",
    "headService": "Service",
    "serveService": "Service",
}
"""Fields that hold a core kind, by name."""
KEPT = ("type", "enum", "required", "pattern", "items", "properties", "additionalProperties")


def cut(schema: dict[str, Any]) -> dict[str, Any]:
    """Turn an OpenAPI schema of a custom resource into a closed JSON schema without prose.

    An API server drops unknown fields silently, so every object that names its fields gets
    `additionalProperties: false`, except where the definition says that unknown fields are kept.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    out = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in out:
        out["properties"] = {
            name: {"type": "object", "core": CORE[name]} if name in CORE else cut(field)
            for name, field in out["properties"].items()
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
    for inner in ("items", "additionalProperties"):
        if isinstance(out.get(inner), dict):
            out[inner] = cut(out[inner])
    return out


def main(files: list[str]) -> None:
    """Print the facts of these definitions as one JSON document."""
    kinds: dict[str, Any] = {}
    for file in files:
        definition = yaml.safe_load(Path(file).read_text())
        for version in definition["spec"]["versions"]:
            if version["served"] and not version.get("deprecated"):
                schema = cut(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                schema["properties"].pop("status", None)
                group, kind = definition["spec"]["group"], definition["spec"]["names"]["kind"]
                kinds[f"{group}/{version['name']} {kind}"] = schema
    json.dump({"about": ABOUT, "kinds": kinds}, sys.stdout, sort_keys=True, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
