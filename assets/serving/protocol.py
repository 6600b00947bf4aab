"""What uvicorn leaves open: how large the head of a request may be, and how long a request may take to come."""

import asyncio
import json
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from assets.serving.guard import fault

HEAD_BYTES = 64 * 1024  # of a request, bodies apart; a longer one is refused after at most one more read
REQUEST_SECONDS = 10.0  # from a connection, or a request's first byte, to the request's last one


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, which by itself reads heads without end and waits for a request for ever.

    Its timeout for connections that are kept alive begins after an answer and ends with the next byte; here what is
    between two such times is bounded too. Bodies are counted by `guard.Guard`.
    """

    _deadline: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0  # bytes of this request that are no body: its head, the sizes of chunks, trailers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:  # also for what is no request yet: an empty line before it
            self._await_request()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse(431, f"the request's head has more than {HEAD_BYTES:,} bytes; send fewer or shorter headers")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:  # the end of another request came in the same piece
            self._await_request()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        if not self.cycle.response_complete:  # else nothing but this deadline would end the connection
            self._end_wait()
        super().on_message_complete()

    def _await_request(self) -> None:
        told = f"the request had not come after {REQUEST_SECONDS:g} s; send it at once"
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._refuse, 408, told)

    def _end_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int, message: str) -> None:
        """Close the connection, with an answer in the shape of `guard.refuse` where none stands or is under way."""
        if self.transport.is_closing():
            return
        cycle = self.cycle  # of the latest request whose head is whole
        if not self.pipeline and (
            cycle is None or (cycle.response_complete if self._in_head else not cycle.response_started)
        ):
            content = json.dumps({"errors": [fault(message)]}).encode()
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + content)
        self.transport.close()
