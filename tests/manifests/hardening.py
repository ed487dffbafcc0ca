"""The rules of the house for pods: nobody is root, secrets come by reference, a pod that ends has time to save."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.manifests.pods import pods_of, ray_spec
from tests.manifests.rendering import name_of, of_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.manifests.pods import Pod
    from tests.manifests.rendering import Object

__all__ = ["hardening_faults"]

DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
DRAIN_MARGIN_S = 20
"""Between the end of a drain and the pod's end by force."""
SECRET_WORDS = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|DATABASE_URL|JUDGE_KEY")
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "": 1}


def hardening_faults(objects: list[Object]) -> list[str]:
    """Say where an overlay breaks a rule."""
    faults = [f"{pod.where}: {fault}" for pod in pods_of(objects) for fault in _pod_faults(pod)]
    for one in of_kind(objects, "RayCluster", "RayService"):
        faults += [f"{name_of(one)}: {fault}" for fault in _cluster_faults(ray_spec(one))]
    for one in of_kind(objects, "ConfigMap"):
        secret = [key for key in one.get("data", {}) if SECRET_WORDS.search(key)]
        faults += [f"{name_of(one)}: {key} belongs into a Secret" for key in secret]
    if not any(_denies_all(one["spec"]) for one in of_kind(objects, "NetworkPolicy")):
        faults.append("no NetworkPolicy refuses everything by default")
    return faults


def _pod_faults(pod: Pod) -> Iterator[str]:
    who = pod.spec.get("securityContext", {})
    if not who.get("runAsNonRoot") or not who.get("runAsUser"):
        yield "securityContext must have runAsNonRoot and a runAsUser"
    if who.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext.seccompProfile.type must be RuntimeDefault"
    if pod.role != "head" and pod.spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false: it has no business with Kubernetes"
    if pod.spec.get("enableServiceLinks") is not False:
        yield "enableServiceLinks must be false: it would set DREAMSERVE_… variables"
    for container in pod.containers:
        yield from (f"container {container['name']}: {fault}" for fault in _container_faults(container, pod))
    if pod.role == "worker":
        yield from _worker_faults(pod)


def _container_faults(container: Object, pod: Pod) -> Iterator[str]:
    locked = container.get("securityContext", {})
    if locked.get("allowPrivilegeEscalation") is not False or locked.get("capabilities") != {"drop": ["ALL"]}:
        yield "securityContext must forbid privilege escalation and drop ALL capabilities"
    for variable in container.get("env", []):
        if "value" in variable and SECRET_WORDS.search(variable["name"]):
            yield f"{variable['name']} must come from a Secret"
    resources = container.get("resources", {})
    requested, limit = (resources.get(one, {}).get("memory") for one in ("requests", "limits"))
    if not limit or requested != limit:
        yield "memory must be requested and limited alike: what is not there cannot be promised"
    elif (in_memory := _memory_volumes(pod)) * 2 > _bytes(limit):
        yield f"/dev/shm of {in_memory} bytes counts in the memory limit {limit}, of which it may take half"
    # KubeRay puts its own probes into Ray's containers.
    if pod.role == "other" and not {"readinessProbe", "livenessProbe"} <= container.keys():
        yield "it needs a readinessProbe and a livenessProbe"
    if pod.role != "other" and "preStop" in container.get("lifecycle", {}):
        yield "no preStop hook: `ray stop` there would skip the drain"


def _worker_faults(pod: Pod) -> Iterator[str]:
    container = pod.spec["containers"][0]
    grace_s = pod.spec.get("terminationGracePeriodSeconds", 30)
    drain_s = next((int(one["value"]) for one in container.get("env", []) if one["name"] == DRAIN), 30)
    if grace_s < drain_s + DRAIN_MARGIN_S:
        yield f"terminationGracePeriodSeconds {grace_s} leaves no {DRAIN_MARGIN_S} s after the drain of {drain_s} s"
    gpus = [container["resources"].get(one, {}).get("nvidia.com/gpu") for one in ("requests", "limits")]
    if any(gpus):
        if gpus[0] != gpus[1]:
            yield f"GPUs must be requested and limited alike, not {gpus}"
        if pod.group.get("minReplicas") != 0 or "idleTimeoutSeconds" not in pod.group:
            yield "a GPU group must be able to vanish: minReplicas 0, with an idleTimeoutSeconds"
        if drain_s < 60:
            yield f"{DRAIN} must give workers 60 s or more to save their jobs"


def _cluster_faults(cluster: Object) -> Iterator[str]:
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token: whoever reaches an open Ray runs code there"
    if cluster.get("autoscalerOptions", {}).get("version") != "v2" or not cluster.get(
        "enableInTreeAutoscaling"
    ):
        yield "it needs the autoscaler v2"
    gpu = [one for one in cluster["workerGroupSpecs"] if one["groupName"].startswith("gpu")]
    priorities = {one["groupName"]: one.get("priority", 0) for one in gpu}
    if gpu and priorities.get("gpu-spot", 0) <= priorities.get("gpu-on-demand", 0):
        yield f"gpu-spot must come before gpu-on-demand by its priority, not {priorities}"


def _memory_volumes(pod: Pod) -> int:
    sizes = (one.get("emptyDir", {}) for one in pod.spec.get("volumes", []))
    return sum(_bytes(one["sizeLimit"]) for one in sizes if one.get("medium") == "Memory")


def _bytes(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)(\D*)", quantity)
    assert match, quantity
    return int(match[1]) * UNITS[match[2]]


def _denies_all(spec: Object) -> bool:
    rules = spec.get("ingress") or spec.get("egress")
    return spec["podSelector"] == {} and set(spec["policyTypes"]) == {"Ingress", "Egress"} and not rules
