"""The OpenAPI document: what FastAPI says of each operation, and what only we know of all of them.

Routes declare their own answers; errors.refusals() names the problems among them. What the gate and the framework answer for
every operation is added here. docs/api.md is printed from this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.errors import MEDIA_TYPE, PROBLEMS, Problem, refusals
from app.api.security import OPEN

DESCRIPTION = """Commands are answered 202 with the run, or 200 when they were already in effect. Lists are pages: `next_cursor`
goes into `after`; attempts and checkpoints of a run come whole. What fails is answered with a problem (RFC 9457), whose `type`
is an address that explains it. An `Idempotency-Key` makes a POST that launches, commands or starts a job safe to repeat; a run's
`ETag` and `If-Match` keep changes from overwriting each other."""

OF_EVERY_OPERATION = (
    "forbidden_origin", "proxied", "body_too_large", "unsupported_media_type", "misdirected", "internal", "busy", "disk_full",
)  # fmt: skip
_SCHEME = "bearer_token"
_HEADERS = {401: "WWW-Authenticate", 416: "Content-Range", 503: "Retry-After"}


def describe(app: FastAPI, *, requires_token: bool) -> None:
    """Have `app` serve its document complete."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(plain(), requires_token)
        return plain()  # kept by FastAPI since the first time

    app.openapi = openapi  # type: ignore[method-assign]


def operation_id(route: APIRoute) -> str:
    """The name of the function: the same as long as we call it so."""
    return route.name


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each method, path and operation, in the order of the routes."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _complete(document: dict[str, Any], requires_token: bool) -> None:
    components = document["components"]
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    components["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
    components["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}
    document["security"] = [{_SCHEME: []}] if requires_token else [{_SCHEME: []}, {}]  # on loopback it may be left out
    for _, path, operation in operations(document):
        if path in OPEN:
            operation["security"] = []
        _refuse(operation, _common(path, operation))
        for parameter in operation.get("parameters", []):
            parameter["schema"] = _sendable(parameter["schema"])
        for media in operation.get("requestBody", {}).get("content", {}).values():
            media["example"] = _example(media["schema"], components["schemas"])
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)


def _sendable(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that may be left out: an address or a header cannot hold a null."""
    forms = [form for form in schema.get("anyOf", []) if form.get("type") != "null"]
    if len(forms) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **forms[0]}


def _common(path: str, operation: dict[str, Any]) -> list[str]:
    """The problems that an operation has by what it is."""
    parameters = operation.get("parameters", [])
    names = [*OF_EVERY_OPERATION]
    if path not in OPEN:
        names.append("unauthorized")
    if parameters or "requestBody" in operation:
        names.append("invalid_request")
    if any(parameter["in"] == "path" or parameter["name"] == "run_ids" for parameter in parameters):
        names.append("not_found")
    if any(parameter["name"].lower() == "idempotency-key" for parameter in parameters):
        names.append("idempotency_key_reused")
    return names


def _refuse(operation: dict[str, Any], names: list[str]) -> None:
    """Say which problems `operation` may answer: those its route names, and `names`."""
    answers = operation["responses"]
    if "HTTPValidationError" in str(answers.get("422")):
        del answers["422"]  # FastAPI's own form, which we do not use
    for status, answer in refusals(*names).items():
        declared = answers.setdefault(str(status), {})
        declared["x-problems"] = [*declared.get("x-problems", []), *answer["x-problems"]]
    for status, answer in answers.items():
        if problems := answer.get("x-problems"):
            answer["description"] = " Or: ".join(PROBLEMS[name][1] for name in problems)
            answer.setdefault("content", {})[MEDIA_TYPE] = {"schema": {"$ref": "#/components/schemas/Problem"}}
            if name := _HEADERS.get(int(status)):
                answer["headers"] = {name: {"schema": {"type": "string"}}}
    operation["responses"] = dict(sorted(answers.items()))


def _example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """The example of the first model that a body may be."""
    ref = schema.get("$ref") or next(form["$ref"] for form in schema["anyOf"] if "$ref" in form)
    return schemas[ref.rpartition("/")[2]]["examples"][0]
