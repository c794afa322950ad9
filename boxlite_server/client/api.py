"""The client of the REST API: requests over one kept-alive HTTP connection, and addresses for WebSockets.

Every failure is a `BoxliteError`: an error of the server has the class of its `code`, and a server that cannot
be reached is `UpstreamUnavailableError`.
"""

from __future__ import annotations

import copy
import http.client
import json
import logging
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ..errors import BoxliteError, InvalidArgumentError, UpstreamUnavailableError, from_code

CONNECT_TIMEOUT = 10.0  # seconds
ANSWER_TIMEOUT = 300.0  # seconds; a create may pull a large image first

URL_SETTING = "--url or BOXLITE_REST_URL"

_IDEMPOTENT = frozenset({"GET", "HEAD", "DELETE"})
_CODE_OF_STATUS = {
    400: "invalid_argument",
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    409: "invalid_state",
    410: "session_reaped",
    429: "resource_exhausted",
    501: "unsupported",
    502: "upstream_unavailable",
    503: "upstream_unavailable",
    504: "timeout",
}

Json = dict[str, Any]
log = logging.getLogger("boxlite.client")


class ApiClient:
    """Sends requests to one server, under one path prefix. It is not thread-safe; see `another`."""

    def __init__(
        self,
        url: str,
        *,
        path_prefix: str = "",
        api_key: str = "",
        ca_cert: Path | str | None = None,
        setting: str = URL_SETTING,
    ) -> None:
        """`url` may carry a base path (`http://host/api`), and `path_prefix` may hold several segments. `ca_cert`: the
        file of the authorities to trust with https; None: those of the host. Errors tell the user to correct `setting`
        when the server cannot be reached. Raises InvalidArgumentError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgumentError(f"invalid server URL '{url}': want http://HOST[:PORT]")
        try:
            self._port = parts.port
        except ValueError as error:
            raise InvalidArgumentError(f"invalid server URL '{url}': {error}") from None
        self.url = url.rstrip("/")
        self._setting = setting
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.tls = _tls_context(ca_cert) if parts.scheme == "https" else None
        self._host = parts.hostname
        self._netloc = parts.netloc
        self._root = parts.path.rstrip("/") + "/v1"
        prefix = path_prefix.strip("/")
        self._base = f"{self._root}/{quote(prefix)}" if prefix else self._root
        self._connection: http.client.HTTPConnection | None = None

    def another(self) -> ApiClient:
        """A client of the same server, for another thread."""
        other = copy.copy(self)
        other._connection = None
        return other

    # Addresses

    def path(self, *segments: str) -> str:
        """The path of a resource under the prefix; each segment is percent-encoded."""
        return "/".join([self._base, *(quote(segment, safe="") for segment in segments)])

    def root_path(self, segment: str) -> str:
        """The path of what belongs to no prefix, such as `me`."""
        return f"{self._root}/{segment}"

    def websocket_url(self, path: str) -> str:
        """The `ws://` or `wss://` address of a path made by `path()`."""
        return f"{'wss' if self.tls else 'ws'}://{self._netloc}{path}"

    # Boxes

    def create_box(self, body: Json) -> Json:
        return self.post(self.path("boxes"), body)

    def get_box(self, box: str) -> Json:
        return self.get(self.path("boxes", box))

    def list_boxes(self) -> list[Json]:
        """All boxes of the prefix, page by page."""
        boxes: list[Json] = []
        query = ""
        while True:
            page = self.get(self.path("boxes") + query)
            boxes += page["boxes"]
            token = page.get("next_page_token")
            if not token:
                return boxes
            query = "?" + urlencode({"pageToken": token})

    def start_box(self, box: str) -> Json:
        return self.post(self.path("boxes", box, "start"))

    def stop_box(self, box: str, timeout_seconds: float | None = None) -> Json:
        body = None if timeout_seconds is None else {"timeout_seconds": timeout_seconds}
        return self.post(self.path("boxes", box, "stop"), body)

    def signal_box(self, box: str, number: int) -> None:
        self.request("POST", self.path("boxes", box, "signal"), {"signal": number})

    def change_box(self, box: str, fields: Json) -> Json:
        return self.parsed(self.request("PATCH", self.path("boxes", box), fields))

    def remove_box(self, box: str, *, force: bool = False) -> str:
        """Remove a box, and return the server's warning, which is mostly empty."""
        # `force` is always sent: servers differ in its default.
        answer = self.request("DELETE", self.path("boxes", box) + f"?force={'true' if force else 'false'}")
        return str(self.parsed(answer).get("message") or "") if answer.startswith(b"{") else ""

    # HTTP

    def get(self, path: str) -> Json:
        return self.parsed(self.request("GET", path))

    def post(self, path: str, body: Json | None = None) -> Json:
        return self.parsed(self.request("POST", path, body))

    def post_lines(self, path: str, body: Json) -> Iterator[Json]:
        """Send a POST and yield the JSON objects of the answer, one for each line, as they come.

        Servers that do not stream answer with a single object. Raises `BoxliteError`, also for an `error` in a
        line.
        """
        response = self.download("POST", path, "application/x-ndjson, application/json", body)
        try:
            for line in response:
                document = self.parsed(line)
                if "error" in document:
                    raise error_from(response.status, line)
                yield document
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise unreachable(self.url, error, self._setting) from error

    def request(self, method: str, path: str, body: Json | None = None) -> bytes:
        """Send a request and return the body of the 2xx answer. Raises `BoxliteError`."""
        headers = {"Accept": "application/json", **self.headers}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        started = time.monotonic()
        try:
            status, answer = self._exchange(method, path, payload, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise unreachable(self.url, error, self._setting) from error
        log.debug("%s %s -> %d in %.0f ms", method, path, status, (time.monotonic() - started) * 1e3)
        if 200 <= status < 300:
            return answer
        raise error_from(status, answer)

    def upload(
        self, method: str, path: str, chunks: Iterable[bytes], content_type: str
    ) -> tuple[bytes, http.client.HTTPMessage]:
        """Send a request whose body is streamed from `chunks`, and return the body and the headers of the 2xx answer.

        Raises `BoxliteError`. If `chunks` raises, the connection is broken, so that the server does not take a
        part for the whole.
        """
        headers = {"Accept": "application/json", "Content-Type": content_type, **self.headers}
        try:
            connection = self._connection or self._connect()
            try:
                connection.request(method, path, chunks, headers, encode_chunked=True)
            except (BrokenPipeError, ConnectionResetError):
                log.debug("%s %s: the server did not wait for the end", method, path)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise unreachable(self.url, error, self._setting) from error
        except BaseException:
            self.close()
            raise
        if 200 <= response.status < 300:
            return answer, response.headers
        self.close()  # the server may not have read the whole body: the rest must not be taken for a request
        raise error_from(response.status, answer)

    def download(
        self,
        method: str,
        path: str,
        accept: str,
        body: Json | None = None,
        more: Mapping[str, str] | None = None,
        *,
        silence: float | None = None,
    ) -> http.client.HTTPResponse:
        """Send a request, with `more` headers, and return the 2xx answer, whose body must be read to its end before the
        next request. `silence`: seconds that may pass between two pieces of the body.

        Raises `BoxliteError`. Reading a body that breaks off raises http.client.HTTPException or OSError.
        """
        headers = {"Accept": accept, **self.headers, **(more or {})}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection = self._connection or self._connect()
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            if silence is not None and connection.sock is not None:
                connection.sock.settimeout(silence)
            answer = b"" if 200 <= response.status < 300 else response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise unreachable(self.url, error, self._setting) from error
        if 200 <= response.status < 300:
            return response
        raise error_from(response.status, answer)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(self, method: str, path: str, payload: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        reused = self._connection is not None
        try:
            return self._exchange_once(method, path, payload, headers)
        except (ConnectionError, http.client.BadStatusLine):
            # The server may have closed an idle connection. A POST is not repeated: it may have taken effect.
            if not reused or method not in _IDEMPOTENT:
                raise
        self.close()
        return self._exchange_once(method, path, payload, headers)

    def _exchange_once(
        self, method: str, path: str, payload: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection = self._connection or self._connect()
        connection.request(method, path, payload, headers)
        response = connection.getresponse()
        return response.status, response.read()

    def _connect(self) -> http.client.HTTPConnection:
        if self.tls:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_TIMEOUT, context=self.tls
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT)
        connection.connect()
        connection.sock.settimeout(ANSWER_TIMEOUT)
        self._connection = connection
        return connection

    @staticmethod
    def parsed(answer: bytes) -> Json:
        """Parse the body of an answer, which must be a JSON object. Raises `BoxliteError`."""
        try:
            document = json.loads(answer)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise BoxliteError("the server's answer is not a JSON object; is --url a BoxLite server?")
        return document


def _tls_context(ca_cert: Path | str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_cert)
    except OSError as error:  # ssl.SSLError is an OSError
        raise InvalidArgumentError(f"cannot use the authorities in {ca_cert}: {error.strerror or error}") from error


def unreachable(url: str, reason: BaseException, setting: str = URL_SETTING) -> UpstreamUnavailableError:
    """The error for a server that does not answer at `url`."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UpstreamUnavailableError(
            f"{url} cannot be trusted: {reason.verify_message}; name its authority by --ca-cert or BOXLITE_CA_CERT"
        )
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return UpstreamUnavailableError(f"cannot reach {url}: {text}; is the coordinator running? set {setting}")


def error_from(status: int, body: bytes) -> BoxliteError:
    """The error for an answer with this status and body. Any body is accepted."""
    code, message = _CODE_OF_STATUS.get(status, "internal"), ""
    try:
        document = json.loads(body)
        error = document.get("error", document)
        message = str(error.get("message") or "")
        # Under the prefix "default", `code` is the HTTP status as a number.
        code = error["code"] if isinstance(error.get("code"), str) else code
    except (ValueError, AttributeError):
        message = body.decode(errors="replace").strip().partition("\n")[0][:200]
    return from_code(code, message or f"the server answered {status} {http.client.responses.get(status, '')}".rstrip())
