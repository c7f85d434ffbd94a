"""The service as its client sees it: requests by httpx, and every failure a sentence with an exit code.

A run is what the service answered, a plain dict: the client shows fields, it decides little by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any, ClassVar, Final

import httpx

Json = dict[str, Any]

LOCAL: Final = "http://127.0.0.1:8000"
TIMEOUT_S = 30.0
PAGE = 500
_RUN_ID = re.compile(r"run_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CANDIDATES = 8


class ExitCode(IntEnum):
    """What scripts read; the README and --help list them."""

    OK = 0
    ENDED_OTHERWISE = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    UNAUTHORIZED = 6
    CTRL_C = 130


class ClientError(Exception):
    """Ends a command; its text is for a person."""

    code: ClassVar[ExitCode]


class NotFound(ClientError):
    """No such thing, or more than one."""

    code = ExitCode.NOT_FOUND


class Refused(ClientError):
    code = ExitCode.REFUSED


class Unreachable(ClientError):
    code = ExitCode.UNREACHABLE


class Unauthorized(ClientError):
    code = ExitCode.UNAUTHORIZED


class Api(AbstractContextManager["Api"]):
    def __init__(self, url: str, token: str | None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=self.url, headers=self.headers, timeout=TIMEOUT_S, transport=transport)

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Json:
        return self._ask("GET", path, params={name: value for name, value in query.items() if value is not None})

    def post(self, path: str, body: Json | None = None, idempotency_key: str | None = None) -> Json:
        return self._ask("POST", path, json=body or None, headers={"Idempotency-Key": idempotency_key} if idempotency_key else {})

    def patch(self, path: str, body: Json) -> Json:
        return self._ask("PATCH", path, json=body)

    def put(self, path: str, body: Json) -> Json:
        return self._ask("PUT", path, json=body)

    def delete(self, path: str) -> None:
        self._ask("DELETE", path)

    def pages(self, path: str, **query: Any) -> Iterator[Json]:
        """The entries of a list, page after page."""
        while True:
            page = self.get(path, **{"limit": PAGE, **query})
            yield from page["data"]
            if not page["has_more"]:
                return
            query["after"] = page["next_cursor"]

    def find(self, reference: str) -> Json:
        """The run of this id, of this name, or whose id begins or ends so; raises NotFound, also where there are several."""
        if _RUN_ID.fullmatch(reference):
            return self.get(f"/v1/runs/{reference}")
        found = matches(reference, self.pages("/v1/runs", name=reference)) or matches(reference, self.pages("/v1/runs"))
        if len(found) != 1:
            raise NotFound(_which(reference, found, "run"))
        return self.get(f"/v1/runs/{found[0]['id']}")

    def find_group(self, reference: str) -> Json:
        """A group in the same way."""
        found = matches(reference, self.pages("/v1/groups"), "group_")
        if len(found) != 1:
            raise NotFound(_which(reference, found, "group"))
        return found[0]

    def _ask(self, method: str, path: str, **more: Any) -> Json:
        try:
            answer = self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise Unreachable(f"no answer from {self.url} ({error}); COGNATE_URL or --url says where the service is") from error
        try:
            body = answer.json() if answer.content else {}
        except ValueError:
            body = None
        if not isinstance(body, dict) or not (answer.is_success or "detail" in body):
            raise Unreachable(f"{self.url} answers ({answer.status_code}), but not as this service does; is the address right?")
        if not answer.is_success:
            raise problem(answer.status_code, body)
        return body


def problem(status: int, body: Json) -> ClientError:
    """The failure that a problem+json tells of."""
    faults = [f"{fault.get('field')}: {fault.get('message')}" for fault in body.get("errors", [])]
    told = "\n  ".join([f"{body.get('title', status)}: {body['detail']}", *(fault for fault in faults if fault not in body["detail"])])
    if status == 401:
        return Unauthorized(f"{told}; give it as COGNATE_TOKEN or --token")
    if status == 404:
        return NotFound(told)
    return Unreachable(told) if status >= 500 else Refused(told)


def matches(reference: str, runs: Iterator[Json], prefix: str = "run_") -> list[Json]:
    """The runs, or groups, of this name; where there are none, those whose id begins or ends so. None for an empty one, which all do."""
    named: list[Json] = []
    numbered: list[Json] = []
    for run in runs if reference else ():
        if run["name"] == reference:
            named.append(run)
        elif run["id"].startswith((reference, f"{prefix}{reference}")) or run["id"].endswith(reference):
            numbered.append(run)
    return named or numbered


def _which(reference: str, found: list[Json], kind: str) -> str:
    if not found:
        return f"no {kind} has the name or id {reference!r}; `cognate {kind}s list` shows what there is"
    lines = [f"{each['id']}  {each['name']}  {each.get('state', '')}".rstrip() for each in found[:_CANDIDATES]]
    more = [f"and {len(found) - _CANDIDATES} more"] if len(found) > _CANDIDATES else []
    return "\n  ".join([f"{reference!r} may be any of {len(found)} {kind}s; name one by its id:", *lines, *more])
