"""Does everything that YAML names exist: images, commands, settings, secrets, volumes, ports, pods?"""

from __future__ import annotations

import functools
import importlib
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from pydantic import ValidationError

from service.settings import Settings
from tests.manifests.pods import is_selected, pods_of, ray_spec
from tests.manifests.rendering import K8S, ROOT, name_of, of_kind
from tests.manifests.serve_config import serve_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.manifests.pods import Pod
    from tests.manifests.rendering import Object

__all__ = ["reference_faults"]

AWS_NAMES = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"),
}
"""What boto3 reads (its documentation, "Using environment variables"); AWS_REGION is not among it."""
OTHER_SECRETS = {"DREAMSERVE_JUDGE_KEY"}
"""Read by reward_models, where settings are not known."""
RAY_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001, "as-metrics": 44217, "dash-metrics": 44227}
"""Ray's own defaults, and 8080, which KubeRay tells it to export metrics at."""


def reference_faults(objects: list[Object]) -> list[str]:
    """Say what an overlay names that is not there."""
    pods = pods_of(objects)
    faults = [fault for pod in pods for fault in _pod_faults(pod, objects)]
    faults += [fault for one in objects for fault in _port_faults(one, pods, objects)]
    for one in of_kind(objects, "RayCluster", "RayService"):
        faults += [f"{name_of(one)}: {fault}" for fault in _ray_faults(one, objects)]
    return faults


# ---- within a pod


def _pod_faults(pod: Pod, objects: list[Object]) -> Iterator[str]:
    for container in pod.containers:
        where = f"{pod.where}, container {container['name']}"
        for fault in (
            *_image_faults(container["image"]),
            *_command_faults(container),
            *_source_faults(container, objects),
            *(_environment_faults(container, objects) if pod.role != "other" else ()),
            *_volume_faults(container, pod, objects),
        ):
            yield f"{where}: {fault}"


def _image_faults(image: str) -> Iterator[str]:
    name, _, tag = image.rpartition("/")[2].partition(":")
    if not re.match(r"v?\d+\.\d+", tag):
        yield f"image {image} is not pinned to a version"
    target = name.removeprefix("dreamserve-")
    if target == name:
        return
    if not re.search(rf"(?m)^FROM \S+ AS {re.escape(target)}$", (ROOT / "Dockerfile").read_text()):
        yield f"image {image}: the Dockerfile has no target '{target}'"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if tag != version:
        yield f"image {image}: the version in pyproject.toml is {version}"


@functools.cache
def _commands() -> frozenset[str]:
    from typer.main import get_command

    from service.cli import app

    importlib.import_module("workers.main")  # which adds its own commands
    return frozenset(get_command(app).commands)  # type: ignore[attr-defined]


def _command_faults(container: Object) -> Iterator[str]:
    hooks = container.get("lifecycle", {})
    commands = [
        container.get("command", []),
        *(hook.get("exec", {}).get("command", []) for hook in hooks.values()),
    ]
    for command in commands:
        if command[:1] == ["dreamserve"] and command[1:2] and command[1] not in _commands():
            yield f"there is no command `{' '.join(command)}`"


def _source_faults(container: Object, objects: list[Object]) -> Iterator[str]:
    maps = {one["metadata"]["name"]: one.get("data", {}) for one in of_kind(objects, "ConfigMap")}
    secrets = {"dreamserve-secrets": _secret_keys()}
    for source in container.get("envFrom", []):
        if "secretRef" in source or source["configMapRef"]["name"] not in maps:
            yield f"envFrom names {source}, which is not there"
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        for kind, there in (("secretKeyRef", secrets), ("configMapKeyRef", maps)):
            if (ref := source.get(kind)) and ref["key"] not in there.get(ref["name"], {}):
                yield f"{variable['name']}: there is no key {ref['key']} in {ref['name']}"


def _secret_keys() -> set[str]:
    lines = (K8S / "secrets.example.env").read_text().splitlines()
    return {line.partition("=")[0] for line in lines if line and not line.startswith("#")}


def _environment_faults(container: Object, objects: list[Object]) -> Iterator[str]:
    """Hold the variables of a Ray container against those that anything reads, and their values against the types."""
    maps = {one["metadata"]["name"]: one.get("data", {}) for one in of_kind(objects, "ConfigMap")}
    given: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        given |= maps.get(source.get("configMapRef", {}).get("name"), {})
    given |= {one["name"]: one.get("value") for one in container.get("env", [])}
    for name in given:
        if not _is_read(name):
            yield f"nothing reads the variable {name}"
    values = {name: value for name, value in given.items() if value is not None}
    try:
        with mock.patch.dict(os.environ, values, clear=True):
            Settings()
    except ValidationError as error:
        yield from (
            f"DREAMSERVE_{'_'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors()
        )


def _is_read(name: str) -> bool:
    if name.startswith("DREAMSERVE_"):
        return name.removeprefix("DREAMSERVE_").lower() in Settings.model_fields or name in OTHER_SECRETS
    if name.startswith("RAY_"):
        return name in _ray_variables()
    return name in AWS_NAMES


@functools.cache
def _ray_variables() -> frozenset[str]:
    import ray

    files = Path(ray.__file__).parent.rglob("*.py")
    found = (re.findall(r"\bRAY_[A-Za-z_]+", file.read_text(errors="replace")) for file in files)
    return frozenset(name for names in found for name in names)


def _volume_faults(container: Object, pod: Pod, objects: list[Object]) -> Iterator[str]:
    volumes = {one["name"]: one for one in pod.spec.get("volumes", [])}
    claims = {one["metadata"]["name"] for one in of_kind(objects, "PersistentVolumeClaim")}
    for one in objects:
        for claim in one.get("spec", {}).get("volumeClaimTemplates", []):
            if one["spec"]["template"] is pod.template:
                volumes[claim["metadata"]["name"]] = {}
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"there is no volume {mount['name']}"
    for volume in volumes.values():
        if (claim := volume.get("persistentVolumeClaim")) and claim["claimName"] not in claims:
            yield f"there is no claim {claim['claimName']}"


# ---- between pods


def _port_faults(one: Object, pods: list[Pod], objects: list[Object]) -> Iterator[str]:
    checks = {
        "Service": _service_faults,
        "NetworkPolicy": _policy_faults,
        "PodMonitor": _pod_monitor_faults,
        "PodDisruptionBudget": _budget_faults,
    }
    if one["kind"] in checks:
        yield from (f"{name_of(one)}: {fault}" for fault in checks[one["kind"]](one["spec"], pods))
    if one["kind"] == "ServiceMonitor":
        yield from (f"{name_of(one)}: {fault}" for fault in _service_monitor_faults(one["spec"], objects))


def _selected(selector: Object, pods: list[Pod]) -> list[Pod]:
    return [pod for pod in pods if is_selected(selector, pod.labels)]


def _service_faults(spec: Object, pods: list[Pod]) -> Iterator[str]:
    chosen = _selected({"matchLabels": spec["selector"]}, pods)
    if not chosen:
        yield f"it selects no pod: {spec['selector']}"
    for port in spec["ports"]:
        target = port.get("targetPort", port["port"])
        if not all(target in (*pod.ports, *pod.ports.values()) for pod in chosen):
            yield f"its pods have no port {target}"


def _budget_faults(spec: Object, pods: list[Pod]) -> Iterator[str]:
    if not _selected(spec["selector"], pods):
        yield f"it selects no pod: {spec['selector']}"


def _policy_faults(spec: Object, pods: list[Pod]) -> Iterator[str]:
    chosen = _selected(spec["podSelector"], pods)
    if not chosen:
        yield f"it selects no pod: {spec['podSelector']}"
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(direction, []):
            ours = [one["podSelector"] for one in rule.get(peers, []) if "namespaceSelector" not in one]
            yield from (f"it names a peer that is no pod: {one}" for one in ours if not _selected(one, pods))
            targets = (
                chosen if direction == "ingress" else [pod for one in ours for pod in _selected(one, pods)]
            )
            there = {port for pod in targets for port in pod.ports.values()}
            wanted = {port["port"] for port in rule.get("ports", [])} if targets else set()
            yield from (f"its pods have no port {port}" for port in sorted(wanted - there))


def _pod_monitor_faults(spec: Object, pods: list[Pod]) -> Iterator[str]:
    chosen = _selected(spec["selector"], pods)
    if not chosen:
        yield f"it selects no pod: {spec['selector']}"
    for endpoint in spec["podMetricsEndpoints"]:
        yield from (
            f"{pod.where} has no port named {endpoint['port']}"
            for pod in chosen
            if endpoint["port"] not in pod.ports
        )


def _service_monitor_faults(spec: Object, objects: list[Object]) -> Iterator[str]:
    made = [
        one["spec"]["serveService"] for one in of_kind(objects, "RayService") if "serveService" in one["spec"]
    ]
    services = [
        one
        for one in (*of_kind(objects, "Service"), *made)
        if is_selected(spec["selector"], one["metadata"].get("labels", {}))
    ]
    if not services:
        yield f"it selects no service: {spec['selector']}"
    for endpoint in spec["endpoints"]:
        for service in services:
            if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
                yield f"service {service['metadata']['name']} has no port named {endpoint['port']}"


# ---- Ray


def _ray_faults(one: Object, objects: list[Object]) -> Iterator[str]:
    from ray.scripts.scripts import start

    cluster = ray_spec(one)
    pinned = re.search(r"(?m)^ray==(\S+)$", (ROOT / "constraints.txt").read_text())
    assert pinned, "constraints.txt pins ray"
    if cluster["rayVersion"] != pinned[1]:
        yield f"rayVersion is {cluster['rayVersion']}, but the images have {pinned[1]} (constraints.txt)"
    options = {option.removeprefix("--") for each in start.params for option in each.opts}
    for pod in pods_of([one]):
        unknown = set(pod.group["rayStartParams"]) - options
        yield from (f"`ray start` has no option --{option}" for option in sorted(unknown))
        wrong = {name for name, port in RAY_PORTS.items() if pod.ports.get(name, port) != port}
        yield from (f"port {name} of Ray is {RAY_PORTS[name]}" for name in sorted(wrong))
        if pod.ports.get("metrics") != 8080:
            yield f"{pod.where} has no port 8080 named metrics, where KubeRay lets Ray export"
    redis = re.fullmatch(r"redis://([\w-]+):(\d+)", cluster["gcsFaultToleranceOptions"]["redisAddress"])
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "Service")}
    if not redis or int(redis[2]) not in [
        port["port"] for port in services.get(redis[1], {"ports": []})["ports"]
    ]:
        yield f"there is no service at {cluster['gcsFaultToleranceOptions']['redisAddress']}"
    if one["kind"] == "RayService":
        yield from _serve_port_faults(one)


def _serve_port_faults(service: Object) -> Iterator[str]:
    exposed = {int(port) for port in re.findall(r"(?m)^EXPOSE (\d+)$", (ROOT / "Dockerfile").read_text())}
    given = {
        "the Service": {port["targetPort"] for port in service["spec"]["serveService"]["spec"]["ports"]},
        "the pods": {pod.ports["serve"] for pod in pods_of([service]) if "serve" in pod.ports},
        "the Dockerfile": exposed,
    }
    wanted = serve_ports(service)
    yield from (
        f"Serve listens at {wanted}, but {who} says {ports}"
        for who, ports in given.items()
        if ports != wanted
    )
