"""The OpenAPI document: what the framework cannot see of it, and what this server can do now.

What keeps to the document is accepted: a job request's schema names the methods, priors, rewards and presets that
live workers have. Where JSON Schema cannot say how two fields depend on each other, the document says something
narrower than the service's own rule (`SURE`, `SURE_DEFAULTS`, `SURE_SWEEP`), and a `$comment` tells so.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema

from service.http import job_actions, webhooks
from service.http.auth import describe_security
from service.http.capabilities import METHODS
from service.http.errors import ProblemDocument, problems
from service.jobs.admission import admit
from service.jobs.batch_input import BatchRequest
from service.jobs.capabilities import embedded_capabilities
from service.jobs.defaults import DEFAULT_REWARD, EMBEDDED
from service.jobs.errors import Refused, StoreUnavailable
from service.jobs.keys import NewKey
from service.jobs.knobs import SdsMethod
from service.jobs.presets import PRESETS
from service.jobs.spec import MAX_EMBEDDED_STEPS, JobRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi import FastAPI

    from service.jobs.capabilities import Capabilities
    from service.jobs.store import JobStore
    from service.settings import Settings

__all__ = ["ABOUT", "install_document"]

Schema = dict[str, Any]

ABOUT: Final = """Text to 3D objects that people prefer. POST a prompt to `/generate`, follow
`/v1/jobs/{id}/events`, fetch the mesh from `/v1/artifacts/{id}/content`.

Errors are `application/problem+json` (RFC 9457): `code` for programs, `detail` and `suggestion` for people,
`errors` with a JSON pointer to each wrong field, `request_id` to find the request in the service's log.

A POST that creates something may carry the header `Idempotency-Key` (see `x-idempotency-key`, and the parameter
`IdempotencyKey` among the components): the same key and body get the first answer again, another body a 422.

A request that fits its schema here is accepted. Where fields depend on each other in a way that no schema can say
(`$comment` tells where), the service accepts more than the schema does."""

MODELS: Final = (
    JobRequest,
    BatchRequest,
    job_actions.CancelRequest,
    job_actions.KeepRequest,
    webhooks.WebhookRequest,
    webhooks.WebhookChange,
    NewKey,
)
"""Bodies, which we read ourselves."""
IDEMPOTENCY_KEY: Final = "idempotency-key"

_SURE_RAMP: Final[Schema] = {"begin": {"maximum": 0.5}, "until": {"exclusiveMinimum": 0.5}}
SURE: Final[Schema] = {
    "$comment": "What is surely accepted. The rules are: `begin` lies before `until`, and t_min never exceeds t_max.",
    "if": {"properties": {"method": {"type": "object"}}, "required": ["method"]},
    "then": {
        "properties": {
            "method": {
                "properties": {
                    "guidance_scale": {"properties": _SURE_RAMP},
                    "t_max": {
                        "minimum": 0.5,
                        "properties": {**_SURE_RAMP, "start": {"minimum": 0.5}, "end": {"minimum": 0.5}},
                    },
                    "t_min": {
                        "maximum": 0.5,
                        "properties": {**_SURE_RAMP, "start": {"maximum": 0.5}, "end": {"maximum": 0.5}},
                    },
                }
            }
        }
    },
}
"""Of a job: for numbers that depend on each other."""
SURE_DEFAULTS: Final = ("license_policy", "metadata", "priority", "seed")
"""Fields of a job that fit under every line of a batch: no rule joins them to others."""
SURE_SWEEP: Final[Schema] = {"seed": {"type": "array", "enum": [[0], [0, 1], [0, 1, 2, 3]]}}
"""Examples: a schema cannot say that one of the combinations is to make a job of one of the lines."""


def install_document(api: FastAPI, store: JobStore, settings: Settings) -> None:
    """Let `api.openapi()` build the document, and serve it at `/openapi.json` and, for people, at `/docs`."""
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _complete(generate(), settings)
        return _as_of_now(api.openapi_schema, store, settings)

    def document() -> JSONResponse:
        return JSONResponse(openapi())

    def docs() -> HTMLResponse:
        # Relative, so that they hold behind a proxy's prefix too.
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=api.title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )

    api.openapi = openapi  # type: ignore[method-assign]
    api.get("/openapi.json", include_in_schema=False)(document)
    api.get("/docs", include_in_schema=False)(docs)
    # Swagger UI comes from a package: a service without the internet shows its documentation too.
    api.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))


def _complete(document: Schema, settings: Settings) -> Schema:
    """Add what the framework cannot see: we read bodies and write problems ourselves."""
    _, schemas = models_json_schema(
        [*((model, "validation") for model in MODELS), (ProblemDocument, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas["$defs"])
    _describe_batch(components["schemas"])
    for method in METHODS.values():
        # It tells the methods apart.
        components["schemas"][method.__name__]["required"] = ["name"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    describe_security(document)
    if settings.auth == "off":
        components.pop("securitySchemes", None)
    for path in document["paths"].values():
        for operation in path.values():
            _correct(operation, components)
            if settings.auth == "off":
                operation.pop("security", None)
                operation["responses"].pop("401", None)
    return document


def _correct(operation: Schema, components: Schema) -> None:
    """Describe our problems where the framework has its own 422, and parameters and answers as what they can be."""
    if "application/json" in operation["responses"].get("422", {}).get("content", {}):
        operation["responses"] |= {str(status): answer for status, answer in problems(422).items()}
    for answer in operation["responses"].values():
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        if "$ref" in schema:
            # Beside the model that the route names stands what the framework has read off its signature.
            answer["content"]["application/json"]["schema"] = {"$ref": schema["$ref"]}
    parameters = operation.get("parameters", [])
    for parameter in parameters:
        _without_null(parameter["schema"])
    keys = [one for one in parameters if one["name"] == IDEMPOTENCY_KEY]
    if keys:
        # Not among the parameters: who makes their values up at random, as fuzzers do, says one key twice.
        components.setdefault("parameters", {})["IdempotencyKey"] = keys[0]
        operation["x-idempotency-key"] = {"$ref": "#/components/parameters/IdempotencyKey"}
        operation["parameters"] = [one for one in parameters if one not in keys]


def _without_null(schema: Schema) -> None:
    """Drop null, which no text of a URL or header is: what may be null in the code may be left out."""
    match schema.get("anyOf"):
        case [only, {"type": "null"}]:
            del schema["anyOf"]
            schema |= only | {
                name: value for name, value in schema.items() if name in ("title", "description")
            }


def _as_of_now(document: Schema, store: JobStore, settings: Settings) -> Schema:
    """Narrow the schema of a job to what this server can do now; without a database, leave it as wide as it is."""
    try:
        can = store.capabilities() or embedded_capabilities()
    except StoreUnavailable:
        return document
    schemas = copy.deepcopy(document["components"]["schemas"])
    _narrow(schemas, can, settings)
    return {**document, "components": {**document["components"], "schemas": schemas}}


def _narrow(schemas: Schema, can: Capabilities, settings: Settings) -> None:
    job = schemas["JobRequest"]
    fields = job["properties"]
    steering = _steering(can)
    methods = [name for name in METHODS if name in can.methods]
    _name(fields["prior"], can.priors)
    _name(fields["effort"], can.efforts)
    _name(fields["preset"], (name for name in PRESETS if _runs({"preset": name}, can, settings)))
    _name(fields["referee"], can.rewards)
    fields["method"]["anyOf"] = [
        {"type": "string", "enum": methods},
        *({"$ref": f"#/components/schemas/{METHODS[name].__name__}"} for name in methods),
        {"type": "null"},
    ]
    _name(schemas["RewardUse"]["properties"]["name"], steering, or_null=False)
    if not any(facts.version for facts in can.rewards.values()):
        _name(schemas["RewardUse"]["properties"]["version"], ())
    for judged in ("DreamDpoMethod", "PsdMethod"):
        for field in schemas[judged]["properties"].keys() & {"judge", "override"}:
            _name(schemas[judged]["properties"][field], steering)
    if not can.turntables:
        schemas["Outputs"]["properties"]["turntable"]["const"] = False
    schemas["Mesh"]["properties"]["formats"]["items"] = {"type": "string", "enum": [*can.mesh_formats]}
    if set(can.priors) == {EMBEDDED}:
        fields["steps"]["anyOf"][0]["maximum"] = MAX_EMBEDDED_STEPS
    fields["rewards"]["anyOf"][0]["allOf"] = [_once(name) for name in steering]
    job["allOf"] = _rules(methods, can)
    job |= SURE


def _describe_batch(schemas: Schema) -> None:
    """Describe a batch, which is accepted when one of its lines, in one combination of the sweep, is a job."""
    job, batch = schemas["JobRequest"]["properties"], schemas["BatchRequest"]["properties"]
    batch["items"] |= {
        "items": {},
        "contains": {"$ref": "#/components/schemas/BatchLine"},
        "description": "A BatchLine each, with custom_ids that differ. One that is not valid is kept, and told.",
    }
    batch["defaults"] |= {
        "$comment": "Surely accepted; the service takes all fields of JobRequest.",
        "properties": {name: job[name] for name in SURE_DEFAULTS},
        "additionalProperties": False,
    }
    batch["sweep"] |= {
        "$comment": "Surely accepted; the service takes all values of all fields of JobRequest, inner ones too.",
        "properties": SURE_SWEEP,
        "additionalProperties": False,
    }


def _name(schema: Schema, names: Iterable[str], *, or_null: bool = True) -> None:
    """Let a field name one of `names`, and be null if it may be left out."""
    for keyword in ("anyOf", "type", "pattern"):
        schema.pop(keyword, None)
    schema["enum"] = [*names, *([None] if or_null else [])]


def _runs(body: Mapping[str, Any], can: Capabilities, settings: Settings) -> bool:
    try:
        admit({"prompt": "a red cube", **body}, can, settings)
    except Refused:
        return False
    return True


def _once(name: str) -> Schema:
    """Let an array of rewards name one of them once at most."""
    entry = {"properties": {"name": {"const": name}}, "required": ["name"]}
    return {"contains": entry, "minContains": 0, "maxContains": 1}


def _steering(can: Capabilities) -> list[str]:
    return sorted(name for name, facts in can.rewards.items() if facts.steers)


def _rules(methods: Iterable[str], can: Capabilities) -> list[Schema]:
    """Say which fields of a job go together; as `service.jobs.runnable` does it."""
    following = [name for name in methods if name != SdsMethod.model_fields["name"].default]
    named = {"properties": {"name": {"enum": following}}, "required": ["name"]}
    views = {facts.views for facts in can.priors.values()} - {None}
    steering = _steering(can)
    fit = [name for name in steering if not views or can.rewards[name].views in (None, *views)]
    some: Schema = {"rewards": {"minItems": 1}}
    scored: Schema = {"rewards": {**some["rewards"], "items": {"properties": {"name": {"enum": fit}}}}}
    if fit != steering:
        judge = {"enum": [*fit, None]}
        scored["method"] = {"properties": {"judge": judge, "override": judge}}
    several = {"properties": {"count": {"minimum": 2}}, "required": ["count"], "type": "object"}
    rules = [
        _rule({"method": {"anyOf": [{"enum": following}, {"type": "object", **named}]}}, scored),
        _rule({"candidates": several}, {**some, "effort": {"not": {"const": "preview"}}}),
        *(_impartial(name, steering) for name in steering),
    ]
    if "preview" in can.efforts:
        still = {"properties": {"turntable": {"const": False}}}
        rules.append(_rule({"effort": {"const": "preview"}}, {"steps": {"type": "null"}, "outputs": still}))
    return rules


def _impartial(referee: str, steering: Iterable[str]) -> Schema:
    """Keep a referee from steering."""
    others = sorted(set(steering) - {referee})
    judge = {"enum": [*others, None]}
    rewards: Schema = {"items": {"properties": {"name": {"enum": others}}}}
    usual = referee == DEFAULT_REWARD
    rule = _rule(
        {"referee": {"const": referee}},
        {
            "rewards": {"type": "array", **rewards} if usual else rewards,
            "method": {"properties": {"judge": judge, "override": judge}},
        },
    )
    if usual:
        rule["then"]["required"] = ["rewards"]
    return rule


def _rule(where: Schema, then: Schema) -> Schema:
    return {"if": {"properties": where, "required": [*where]}, "then": {"properties": then}}
