"""The Serve configuration inside a RayService: a string, into which KubeRay's own definition cannot see."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from tests.manifests.rendering import Object

__all__ = ["serve_faults", "serve_ports"]


def serve_faults(service: Object) -> list[str]:
    """Hold a RayService's `serveConfigV2` against Ray's own schema, and against the code that it names."""
    from ray.serve.schema import ServeDeploySchema

    where = f"RayService/{service['metadata']['name']}: serveConfigV2"
    try:
        config = yaml.safe_load(service["spec"].get("serveConfigV2", ""))
        ServeDeploySchema.model_validate(config)
    except (yaml.YAMLError, ValidationError) as error:
        return [f"{where}: {' '.join(str(error).split())}"]
    faults = [f"unknown key {key}" for key in _unknown_keys(config, ServeDeploySchema)]
    for application in config["applications"]:
        faults += _application_faults(application)
    return [f"{where}: {fault}" for fault in faults]


def serve_ports(service: Object) -> set[int]:
    """Name the port at which Serve listens."""
    return {yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["port"]}


def _unknown_keys(value: Any, schema: type[BaseModel], where: str = "") -> list[str]:
    """Find keys that Ray would ignore: it accepts a misspelt deployment option."""
    found = [f"{where}{key}" for key in value if key not in schema.model_fields]
    for key, inner in value.items():
        model = _model_of(key)
        for index, one in enumerate(inner if isinstance(inner, list) else [inner]):
            if model and isinstance(one, dict):
                found += _unknown_keys(one, model, f"{where}{key}.{index}.")
    return found


def _model_of(key: str) -> type[BaseModel] | None:
    from ray.serve import schema
    from ray.serve.config import AutoscalingConfig

    models: dict[str, type[BaseModel]] = {
        "applications": schema.ServeApplicationSchema,
        "deployments": schema.DeploymentSchema,
        "http_options": schema.HTTPOptionsSchema,
        "ray_actor_options": schema.RayActorOptionsSchema,
        "autoscaling_config": AutoscalingConfig,
    }
    return models.get(key)


def _application_faults(application: dict[str, Any]) -> list[str]:
    """Build the application as Ray would, and compare its deployments with those that are configured."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    path = application["import_path"]
    module, _, name = path.partition(":")
    try:
        built = build(getattr(importlib.import_module(module), name), application.get("args", {}))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        return [f"import_path {path}: {error}"]
    there = built._bound_deployment.name
    configured = [one["name"] for one in application.get("deployments", [])]
    return [f"{path} has no deployment {one}, but {there}" for one in configured if one != there]
