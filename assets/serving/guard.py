"""What every request passes: host, token and size checks, headers of the answer, metrics; no traceback leaves."""

import hmac
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 64 * 1024
OPEN = ("/", "/v1/health")  # without a token: the page holds no data, and a probe should need no secret
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
}
log = logging.getLogger("scale.serving")


class Metrics:
    """Counts and latencies by endpoint, as Prometheus reads them."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.buckets: Counter[tuple[str, float]] = Counter()

    def observe(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self.requests[endpoint, status] += 1
        self.seconds[endpoint] += seconds
        for bucket in BUCKETS:
            self.buckets[endpoint, bucket] += seconds <= bucket

    def text(self) -> str:
        """Prometheus text format, version 0.0.4."""
        lines = ["# HELP scale_requests_total Answers by endpoint and status.", "# TYPE scale_requests_total counter"]
        errors: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for (endpoint, status), count in sorted(self.requests.items()):
            lines.append(f'scale_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}')
            counts[endpoint] += count
            errors[endpoint] += count if status >= 400 else 0
        lines += ["# HELP scale_errors_total Answers with status 400 or above.", "# TYPE scale_errors_total counter"]
        lines += [f'scale_errors_total{{endpoint="{endpoint}"}} {count}' for endpoint, count in sorted(errors.items())]
        lines += ["# HELP scale_request_seconds Time to an answer.", "# TYPE scale_request_seconds histogram"]
        for endpoint, count in sorted(counts.items()):
            name = f'endpoint="{endpoint}"'
            lines += [
                f'scale_request_seconds_bucket{{{name},le="{bucket}"}} {self.buckets[endpoint, bucket]}'
                for bucket in BUCKETS
            ]
            lines.append(f'scale_request_seconds_bucket{{{name},le="+Inf"}} {count}')
            lines.append(f"scale_request_seconds_sum{{{name}}} {self.seconds[endpoint]:.6f}")
            lines.append(f"scale_request_seconds_count{{{name}}} {count}")
        return "\n".join(lines) + "\n"


class Guard:
    """The outermost layer of the service.

    Parameters
    ----------
    metrics
        Where answers are counted.
    token
        Bearer token that every path but the page and `/v1/health` asks for; None for none.
    hosts
        Names that a `Host` header may hold, so that no page elsewhere reaches a service on this machine by a name of
        its own; None for any.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None, hosts: Sequence[str] | None) -> None:
        self.app, self.metrics, self.token, self.hosts = app, metrics, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._answer(scope, receive, answer)
        except Exception:
            log.exception("%s %r failed", scope["method"], scope["path"])
            if not status:
                await refuse(answer, 500, "the service failed at this request; its log says why")
        finally:
            route = scope.get("route")
            self.metrics.observe(getattr(route, "path", "other"), status or 499, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            names = ", ".join(self.hosts)
            await refuse(send, 400, f"this service answers to {names} only", "Host", host)
            return
        if self.token is not None and scope["path"] not in OPEN and not self._is_allowed(headers):
            told = "give the service's token in the header `Authorization: Bearer TOKEN`"
            await refuse(send, 401, told, "Authorization", headers={"www-authenticate": "Bearer"})
            return
        body = await _body(receive)
        if body is None:
            await refuse(send, 413, f"the body has more than {BODY_BYTES:,} bytes; send a shorter one", "body")
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)

    def _is_allowed(self, headers: Headers) -> bool:
        assert self.token is not None
        kind, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        return kind.lower() == "bearer" and same


def _name(host: str) -> str | None:
    """Name or address of a `Host` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if it is too long."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES:
            return None
    return body


async def refuse(
    send: Send, status: int, message: str, field: str | None = None, value: str | None = None,
    headers: dict[str, str] | None = None,
) -> None:  # fmt: skip
    """Send an error in the one shape that errors have."""
    content = json.dumps({"errors": [fault(message, field, value)]}).encode()
    sent = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    raw = [(name.encode(), text.encode()) for name, text in sent.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})


def fault(message: str, field: str | None = None, value: Any = None) -> dict[str, str | None]:
    """One error; the value is shown as far as it is short and can be written."""
    shown = None if value is None else str(value)[:100].encode("utf-8", "backslashreplace").decode()
    return {"field": field, "value": shown, "message": message}
