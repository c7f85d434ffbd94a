"""The gate before everything else, for http and websockets alike: who may ask, from where, and how much.

Deny by default: a Host header that is not ours, a page of another origin, a body that is large or not JSON, and, when
a token is set, anyone without it; when none is, whatever came through a proxy. Only OPEN paths need no token; no route can opt
out. Our reasons: DNS rebinding, cross-site requests and websockets, and unauthenticated job submission are what hit comparable services.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import ForeignPage, problem
from app.api.tally import Tally

BODY_LIMIT = 64 * 1024
TICKET_S = 30.0
SUBPROTOCOL = "cognate.v1"
TICKET_PREFIX = "ticket."
OPEN = ("/", "/healthz", "/readyz", "/favicon.ico")
OPEN_FOLDER = "/static/"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")  # what proxies and tunnels add
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

RESPONSE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """The token and the single-use tickets that stand for it where a browser cannot send headers."""

    def __init__(self, token_sha256: str | None) -> None:
        self._token_sha256 = token_sha256
        self._tickets: dict[str, float] = {}

    @property
    def requires_token(self) -> bool:
        return self._token_sha256 is not None

    def admits(self, headers: Headers, ticket: str | None) -> bool:
        if self._token_sha256 is None:
            return True
        if ticket is not None and self._tickets.pop(ticket, 0.0) > time.monotonic():
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(sha256(token), self._token_sha256)

    def issue_ticket(self) -> str:
        """A ticket for one stream, within TICKET_S seconds."""
        now = time.monotonic()
        self._tickets = {ticket: until for ticket, until in self._tickets.items() if until > now}
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = now + TICKET_S
        return ticket


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class GateMiddleware:
    def __init__(self, app: ASGIApp, gate: Gate, hosts: Iterable[str]) -> None:
        self._app = app
        self._gate = gate
        self._wrong = Tally("wrong tokens: %d, the last from %s")
        self._hosts = {name.lower() for name in (*LOOPBACK_NAMES, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope, ticket = _take_ticket(scope, headers)
        refusal = self._refuse(scope, headers, ticket)
        if refusal is None and scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        try:
            body = b"" if refusal else await _read_body(receive)
        except ClientDisconnect:
            return
        if body is None:
            refusal = ("body_too_large", f"the body is larger than {BODY_LIMIT} bytes")
        elif body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            refusal = ("unsupported_media_type", "send the body as application/json")
        if refusal or body is None:
            assert refusal is not None
            challenge = {"WWW-Authenticate": "Bearer"} if refusal[0] == "unauthorized" else None
            await problem(*refusal, challenge)(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)

    def _refuse(self, scope: Scope, headers: Headers, ticket: str | None) -> tuple[str, str] | None:
        """The problem with a request before its body is looked at, or None."""
        if not self._gate.requires_token and any(name in headers for name in FORWARDED):
            return "proxied", "this came through a proxy, and anybody may come that way: set COGNATE_TOKEN"
        host = headers.get("host", "")
        if _hostname(host) not in self._hosts:
            return "misdirected", "this Host is not served here; COGNATE_ALLOWED_HOSTS adds names"
        if (scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS) and is_foreign(headers, host):
            return "forbidden_origin", "this may be asked from this service's own pages only"
        path: str = scope["path"]
        is_open = scope["type"] == "http" and (path in OPEN or path.startswith(OPEN_FOLDER))
        if not is_open and not self._gate.admits(headers, ticket):
            if "authorization" in headers:
                self._wrong.count(_asker(scope))
            return "unauthorized", "a bearer token is required"
        return None


def _asker(scope: Scope) -> str:
    """Its address. It may be what a proxy says of it, and that is anybody's text."""
    host, _ = scope.get("client") or ("?", 0)
    return ascii(host[:60])


def _hostname(host: str) -> str | None:
    """The name in a Host header, without port and brackets; None when it is no plain host."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host and not parts.path else None


def refuse_foreign(request: Request) -> None:
    """For a GET that sets something to work, which a page of another site can send unasked; raises ForeignPage. A click is a person's."""
    if is_foreign(request.headers, request.headers.get("host", "")) and request.headers.get("sec-fetch-user") != "?1":
        raise ForeignPage("this may be asked from this service's own pages only")


def is_foreign(headers: Headers, host: str) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:  # not an address at all
        return True


def _take_ticket(scope: Scope, headers: Headers) -> tuple[Scope, str | None]:
    """The ticket of a stream: a websocket offers it as a subprotocol, server-sent events in the address, where nobody else sees it then.

    An address may be kept in a history or a log; so it stands for one stream, once, and only for TICKET_S seconds.
    """
    if scope["type"] == "websocket":
        offered = (name.strip() for name in headers.get("sec-websocket-protocol", "").split(","))
        return scope, next((name.removeprefix(TICKET_PREFIX) for name in offered if name.startswith(TICKET_PREFIX)), None)
    if scope["method"] != "GET" or not scope["path"].endswith("/stream") or b"ticket=" not in scope["query_string"]:
        return scope, None
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in query if name != "ticket"])
    return {**scope, "query_string": rest.encode("latin-1")}, dict(query).get("ticket")


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body, or None when it is over the limit."""
    body: bytes = b""
    while len(body) <= BODY_LIMIT:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect  # half a request is none
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body if len(body) <= BODY_LIMIT else None


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def with_headers(send: Send) -> Send:
    """For every answer: what a browser may make of it."""

    async def wrapped(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):  # the latter refuses a handshake
            headers = MutableHeaders(scope=message)
            for name, value in RESPONSE_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return wrapped
