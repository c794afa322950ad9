"""HTTP below the application: answers to bytes that are not a request, which no ASGI application gets to see."""

from __future__ import annotations

import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ... import errors, ids
from .errors import REQUEST_ID, HeadTooLargeError, error_body

MAX_HEAD_BYTES = 64 * 1024


class HttpProtocol(H11Protocol):
    """HTTP/1.1 whose refusals carry the API's error body."""

    def send_400_response(self, msg: str) -> None:
        """Answer and close. Uvicorn says only that h11 refused the request; the size of the buffer tells why."""
        scope = {REQUEST_ID: ids.request_id()}
        error: errors.BoxliteError = errors.InvalidArgumentError("this is not an HTTP/1.1 request")
        if len(self.conn.trailing_data[0]) > MAX_HEAD_BYTES:
            error = HeadTooLargeError(f"request line and headers are larger than {MAX_HEAD_BYTES} bytes")
        body = json.dumps(error_body(scope, error)).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Request-Id", scope[REQUEST_ID]),
            ("Connection", "close"),
        ]
        head = h11.Response(status_code=error.status, headers=headers)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
