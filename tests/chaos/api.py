"""The cluster's API over plain HTTP, each request with its record."""

from __future__ import annotations

import http.client
import io
import json
import tarfile
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from .history import ACKNOWLEDGED, REFUSED, UNKNOWN, UNREACHED, History, Record
from .world import KEY

BOUND = 120.0  # seconds; what takes longer hangs

Learn = Callable[[Any], dict[str, Any]]


class Api:
    """What one client asks. Nothing is raised for what the cluster does: it stands in the record."""

    def __init__(self, url: str, history: History, client: str) -> None:
        self._address = urlsplit(url).netloc
        self._history = history
        self.client = client

    def ask(self, path: str) -> Any:
        """The JSON of a GET, outside the history. Raises OSError, HTTPException or ValueError."""
        connection = http.client.HTTPConnection(self._address, timeout=20)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
            response = connection.getresponse()
            body = json.loads(response.read())
            if response.status != 200:
                raise OSError(f"GET {path}: {response.status} {body}")
            return body
        finally:
            connection.close()

    def call(
        self,
        op: str,
        args: Mapping[str, Any],
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        learn: Learn | None = None,
        stream: Callable[[http.client.HTTPResponse, float], dict[str, Any]] | None = None,
    ) -> Record:
        """One request. `learn` takes from a good answer what the record keeps; `stream` reads it piece by piece."""
        record = self._history.begin(self.client, op, args)
        headers = {"Authorization": f"Bearer {KEY}"}
        if key:
            headers["Idempotency-Key"] = key
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/x-tar" if isinstance(body, bytes) else "application/json"
        connection = http.client.HTTPConnection(self._address, timeout=BOUND)
        deadline = time.monotonic() + BOUND
        try:
            try:
                connection.connect()
            except OSError as exc:
                record.outcome, record.error = UNREACHED, repr(exc)
                return self._history.end(record)
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            record.status = response.status
            if stream and response.status == 200:
                record.result = stream(response, deadline)
                record.outcome = ACKNOWLEDGED
            else:
                _judge(record, response, response.read(), learn)
        except TimeoutError:
            record.outcome, record.error = UNKNOWN, f"no answer within {BOUND:.0f} s"
            record.flaw = "hung"
        except (OSError, http.client.HTTPException, EOFError) as exc:
            record.outcome, record.error = UNKNOWN, repr(exc)
        finally:
            connection.close()
        return self._history.end(record)


def _judge(record: Record, response: http.client.HTTPResponse, body: bytes, learn: Learn | None) -> None:
    record.result["request_id"] = response.headers.get("X-Request-Id", "")
    if response.status < 300:
        record.outcome = ACKNOWLEDGED
        if learn is not None:
            record.result |= learn(json.loads(body) if response.headers.get_content_subtype() == "json" else body)
        return
    try:
        error = json.loads(body)["error"]
        record.error = f"{error['code']}: {error['message']}"
        in_form = all(isinstance(error[word], str) for word in ("message", "type", "code", "request_id"))
    except (ValueError, KeyError, TypeError):
        in_form, record.error = False, body[:500].decode(errors="replace")
    # A deadline that passed, or a fault, leaves open what was done.
    record.outcome = UNKNOWN if response.status in (500, 504) or not in_form else REFUSED
    if not in_form:
        record.flaw = "the error's body is not in the contract's form"
    elif response.status == 500:
        record.flaw = "a bare 500"


def box_path(box_id: str, rest: str = "") -> str:
    return f"/v1/boxes/{quote(box_id)}{rest}"


def tar_of(name: str, content: str) -> bytes:
    """A tar archive of one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content.encode()))
    return buffer.getvalue()


def content_of(archive: bytes) -> dict[str, Any]:
    """What the first file of a tar archive holds."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            opened = tar.extractfile(member)
            if opened is not None:
                return {"content": opened.read().decode(errors="replace")}
    return {"content": None}
