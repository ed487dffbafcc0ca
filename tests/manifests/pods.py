"""The pods that an overlay makes, whatever kind of object makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.manifests.rendering import name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.manifests.rendering import Object

__all__ = ["Pod", "is_selected", "pods_of", "ray_spec"]


@dataclass(frozen=True)
class Pod:
    """One pod template."""

    where: str
    """For people, such as `RayService/dreamserve worker group gpu-spot`."""
    template: Object
    role: str
    """`head`, `worker` (of Ray) or `other`."""
    group: Object
    """What Ray knows about it beside the template; empty for others."""

    @property
    def spec(self) -> Object:
        spec: Object = self.template["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template.get("metadata", {}).get("labels", {})
        return labels

    @property
    def containers(self) -> list[Object]:
        return [*self.spec["containers"], *self.spec.get("initContainers", [])]

    @property
    def ports(self) -> dict[str, int]:
        """The container ports by name."""
        return {
            port["name"]: port["containerPort"] for one in self.containers for port in one.get("ports", [])
        }


def ray_spec(one: Object) -> Object:
    """Find the cluster within a RayCluster or RayService."""
    spec: Object = one["spec"]
    return spec["rayClusterConfig"] if one["kind"] == "RayService" else spec


def pods_of(objects: list[Object]) -> list[Pod]:
    """Collect the pod templates of all objects."""
    return [pod for one in objects for pod in _pods_of_one(one)]


def is_selected(selector: Object, labels: dict[str, str]) -> bool:
    """Decide whether a label selector takes something with these labels; an empty one takes all."""
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        matches = {
            "Exists": value is not None,
            "DoesNotExist": value is None,
            "In": value in expression.get("values", []),
            "NotIn": value not in expression.get("values", []),
        }
        if not matches[expression["operator"]]:
            return False
    wanted: dict[str, Any] = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items())


def _pods_of_one(one: Object) -> Iterator[Pod]:
    if one["kind"] in ("RayCluster", "RayService"):
        cluster = ray_spec(one)
        head = cluster["headGroupSpec"]
        yield Pod(f"{name_of(one)} head", head["template"], "head", head)
        for group in cluster.get("workerGroupSpecs", []):
            where = f"{name_of(one)} worker group {group['groupName']}"
            yield Pod(where, group["template"], "worker", group)
    elif "template" in one.get("spec", {}):
        yield Pod(name_of(one), one["spec"]["template"], "other", {})
