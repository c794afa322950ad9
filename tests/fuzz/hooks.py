"""What the fuzzer has to know of this API: which refusals are promised, and what must not be touched.

Loaded by schemathesis, in a process of its own. The environment names an image that exists
(BOXLITE_FUZZ_IMAGE) and the worker that runs the boxes (BOXLITE_FUZZ_WORKER).
"""

from __future__ import annotations

import atexit
import io
import itertools
import json
import os
import random
import re
import tarfile
import zlib
from collections import OrderedDict
from typing import Any
from urllib.parse import unquote, urlencode

import requests
import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure, ServerError
from schemathesis.core.parameters import ParameterLocation
from schemathesis.openapi.checks import (
    AllowHeaderMismatch,
    JsonSchemaError,
    RejectedPositiveData,
    UnsupportedMethodResponse,
    UseAfterFree,
)
from support.hostile import HOSTILE_TEXTS, HOSTILE_VALUES, MADE_UP_TOKENS, resolved

from boxlite_server.coordinator.http.routing import find_handler

IMAGE = os.environ["BOXLITE_FUZZ_IMAGE"]
HEADERS = {"Authorization": f"Bearer {os.environ['BOXLITE_FUZZ_KEY']}"}
WORKER = os.environ["BOXLITE_FUZZ_WORKER"]
KEY = "Idempotency-Key"
MAX_BOXES = 24  # boxes that live at a time; the oldest is removed first
MAX_SECONDS = 2  # of a command
HOSTILE = 3  # one in so many requests holds a value that random generation never arrives at

# What a request that fits its schema may still be refused with.
PROMISED = {
    (400, "unsupported"),  # a field that this server refuses rather than drops
    (412, "invalid_state"),  # a file has another ETag
    (416, "invalid_argument"),  # a file has no byte of the range
    (422, "execution_failed"),  # a program that is not in the image
    (422, "image_pull_failed"),
    (426, "invalid_argument"),  # WebSocket paths
    (429, "resource_exhausted"),
    (431, "invalid_argument"),  # a path or query that fits its schema and no request line
}
# How the refusal of a request begins whose fields do not go together.
TOGETHER = (
    "'cols' and 'rows'",
    "env: ",
    "network: ",
    "volumes",
    "ports",
    "'auto_stop' and 'auto_pause'",
    "give either 'stdin'",
    "pools: two pools",
    "'stdin_base64'",
)
OLDER_NAMES = {"pageSize": "page_size", "pageToken": "page_token"}  # refused beside the new ones
PROGRAMS = ("true", "id", "sh", "cat", "nosuch")

# A reference that an engine would go out and pull; anything else is refused without a pull.
_REFERENCE = re.compile(r"[\w][\w./:@-]{0,511}", re.ASCII)

# Names and digests of the engine's images: it is that of all tests.
_NEEDED = re.compile(r"alpine|boxlite|[0-9a-f]{6}")

_QUOTA_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|\*", re.ASCII)

_WORKER_URL = re.compile(r"https?://(\[[^]]*\]|[\w.-]+):\d{1,5}/?", re.ASCII)

_EVENTS = re.compile(
    rb"((event: (stdout|stderr|exit|end|error|lost|gap|[a-z]+\.[a-z_]+)\n)?((id|retry): \d+\n)*(data: [^\n]*\n)*\n"
    rb"|:[^\n]*\n\n)*"
)

_boxes: OrderedDict[str, tuple[str, str]] = OrderedDict()  # id → prefix, URL
_executions: OrderedDict[str, str] = OrderedDict()  # id → its box's id
_known: set[str] = set()  # ids of boxes that there are or were
_tokens = itertools.cycle(MADE_UP_TOKENS)  # in turn, so that each of them comes soon
_hostile: set[str] = set()  # ids of the requests into which something was put


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Put what no schema describes into some requests, and keep what is asked for cheap, local, and off the one worker
    that matters."""
    body, operation_id = case.body, _operation_id(case)
    for older, name in OLDER_NAMES.items():
        if name in (case.query or {}):
            case.query = {key: value for key, value in case.query.items() if key != older}
    key = case.headers.get(KEY)
    is_key = isinstance(key, str) and 0 < len(key) < 200 and not _is_about(case, "header")
    if is_key and (case.method.upper() == "DELETE" or zlib.crc32(key.encode()) % 8):
        # The fuzzer likes to repeat itself, and would get one answer to most of what it asks for. A removal that is
        # replayed says nothing of what was made since under the same name, so no removal is replayed.
        case.headers[KEY] = key + case.id
    if zlib.crc32(case.id.encode()) % 4 and not _is_about(case, "path"):
        _use_what_there_is(case)
    if operation_id == "createBox" and isinstance(body, dict):
        case.body = _local(body, "image")
    elif operation_id == "pullImage" and isinstance(body, dict):
        case.body = _local(body, "reference")
    elif operation_id in ("startExecution", "runCommand") and isinstance(body, dict):
        case.body = _short(body)
    elif "follow" in _query_names(case) and (case.query or {}).get("follow", True):  # the stream might never end
        case.query = {**(case.query or {}), "follow": False}
    elif operation_id == "removeImage" and _NEEDED.search(str((case.path_parameters or {}).get("image_id"))):
        case.path_parameters = {**case.path_parameters, "image_id": "nosuch"}
    elif operation_id == "registerWorker" and isinstance(body, dict):
        case.body = _nowhere(body)
    elif operation_id in ("removeWorker", "setWorkerStatus") and case.path_parameters.get("worker_id") == WORKER:
        case.path_parameters = {**case.path_parameters, "worker_id": "W0rk3r000001"}
    elif operation_id == "setQuotas" and _QUOTA_PREFIX.fullmatch(str(case.path_parameters.get("quota_prefix"))):
        case.path_parameters = {**case.path_parameters, "quota_prefix": "bounded"}  # the others have to go on
    if zlib.crc32(case.id.encode()) % HOSTILE == 0:
        _make_hostile(case, kwargs, random.Random(case.id))


def _make_hostile(case: Any, kwargs: dict[str, Any], chance: random.Random) -> None:
    """Replace one value of the request as it is sent. Random texts are never page tokens, random forms are never long,
    and the fuzzer itself cannot read all of these values."""
    places = [("query", name) for name in _query_names(case)]
    if isinstance(case.body, dict):
        places += [("body", name) for name in (*_body_names(case), "unknown")]
    if not places:
        return
    _hostile.add(case.id)
    part, name = chance.choice(places)
    if "page_token" in _query_names(case) and chance.random() < 0.5:
        case.query = {**(case.query or {}), "page_token": next(_tokens)}
    elif part == "query":
        case.query = {**(case.query or {}), name: chance.choice(HOSTILE_TEXTS)}
    elif case.media_type == "application/x-www-form-urlencoded":
        fields = {f"f{n}": 1 for n in range(chance.choice((0, 99, 1100, 10_000)))}
        kwargs["data"] = urlencode({**case.body, name: chance.choice(HOSTILE_TEXTS), **fields}, errors="surrogatepass")
    else:
        kwargs["data"] = json.dumps({**case.body, name: chance.choice(HOSTILE_VALUES)}).encode()


def _query_names(case: Any) -> list[str]:
    return [parameter.name for parameter in case.operation.query]


def _body_names(case: Any) -> list[str]:
    schema = case.operation.definition.raw.get("requestBody", {}).get("content", {}).get(case.media_type, {})
    return list(resolved(schema.get("schema", {})).get("properties", {}))


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Remember the boxes that were made, and remove the oldest when there are many."""
    made = _json(response) if response.status_code == 201 else None
    if isinstance(made, dict) and "execution_id" in made and case.path_parameters.get("box_id") in _boxes:
        _executions[made["execution_id"]] = case.path_parameters["box_id"]
    if isinstance(made, dict) and "box_id" in made and "/snapshots" not in case.path:
        root, _, rest = response.request.url.partition("/v1/")
        prefix = rest.partition("/")[0]
        _boxes[made["box_id"]] = unquote(prefix), f"{root}/v1/{prefix}/boxes/{made['box_id']}"
        _known.add(made["box_id"])
    if _operation_id(case) == "removeBox" and response.status_code == 204:
        _boxes.pop(case.path_parameters.get("box_id"), None)
    _remove_boxes(MAX_BOXES)


@schemathesis.hook
def filter_failure(context: Any, failure: Failure, case: Any, response: Any) -> bool:
    """False for what is no failure: an operation that is not built says 501, and refusals that are promised."""
    if case.id in _hostile and isinstance(failure, RejectedPositiveData | AcceptedNegativeData):
        return False  # what was put into it may be right or wrong
    if response.status_code == 501 and isinstance(failure, ServerError):
        return _is_built(case)
    if response.status_code == 503 and isinstance(failure, ServerError | RejectedPositiveData):
        # What is asked for may be larger than any machine, and the workers that the fuzzer registers answer to nobody.
        # The answer to HEAD does not tell; GET of the same path does.
        message = _error(response).get("message", "")
        is_told = "no worker can take the" in message or "did not answer" in message
        return not is_told and case.method.upper() != "HEAD"
    if isinstance(failure, RejectedPositiveData):
        if KEY in case.headers and response.status_code == 422:  # the Idempotency-Key was used for another request
            return False
        if response.status_code == 400 and _is_beyond_a_schema(case, response):
            return False
        return (response.status_code, _error(response).get("code")) not in PROMISED
    if isinstance(failure, UnsupportedMethodResponse | AllowHeaderMismatch):
        # /images/usage is a path of its own, and that of an image too, as its name may hold slashes.
        ambiguous = "/images/" in case.path and not case.path.endswith("/{image_id}")
        return not ambiguous and not case.path.endswith("/boxes/import")
    if isinstance(failure, UseAfterFree):
        return "/executions/" not in failure.free  # a killed execution is still there to be read
    if isinstance(failure, JsonSchemaError) and _type_of(response) == "text/event-stream":
        # OpenAPI 3.0 describes the stream as one string; the events in it are not its to describe.
        return _EVENTS.fullmatch(response.content) is None
    return True


def _is_about(case: Any, location: str) -> bool:
    """Whether something there is missing or wrong on purpose: what is touched, the fuzzer takes to be right."""
    if case.meta is None:
        return False
    found = case.meta.components.get(ParameterLocation(location))
    is_wrong = found is not None and found.mode.is_negative
    return is_wrong or getattr(case.meta.phase.data, "parameter_location", None) == location


def _use_what_there_is(case: Any) -> None:
    """Made-up ids are mostly unknown, and would all get a 404. What was removed stays removed."""
    path = case.path_parameters or {}
    if "box_id" not in path or "prefix" not in path or path["box_id"] in _known or not _boxes:
        return
    box_id = next(reversed(_boxes))
    if "execution_id" in path:
        living = [(execution, box) for execution, box in _executions.items() if box in _boxes]
        if not living:
            return
        execution, box_id = living[-1]
        path = {**path, "execution_id": execution}
    case.path_parameters = {**path, "prefix": _boxes[box_id][0], "box_id": box_id}


def _remove_boxes(but: int = 0) -> None:
    while len(_boxes) > but:
        _, (_, url) = _boxes.popitem(last=False)
        requests.delete(url, params={"force": "true"}, headers=HEADERS, timeout=60)


atexit.register(_remove_boxes)


def _local(body: dict[str, Any], field: str) -> dict[str, Any]:
    given = body.get(field)
    if not isinstance(given, str) or not _REFERENCE.fullmatch(given):
        return body
    # One in eight stays unknown, at an address where no registry answers.
    return {**body, field: IMAGE if zlib.crc32(given.encode()) % 8 else "127.0.0.1:9/nosuch"}


def _nowhere(body: dict[str, Any]) -> dict[str, Any]:
    """Whatever host a made-up worker names, the coordinator would call it: nobody listens at this one, and it
    is on this machine. What is no address stays as it is, to be refused."""
    url = body.get("url")
    return {**body, "url": "http://127.0.0.1:9"} if isinstance(url, str) and _WORKER_URL.fullmatch(url) else body


def _short(body: dict[str, Any]) -> dict[str, Any]:
    """A program that exists, as a rule, and ends soon, whatever it is."""
    command, limit = body.get("command"), body.get("timeout_seconds")
    if isinstance(command, str) and command and len(command) <= 4096 and "\0" not in command:
        body = {**body, "command": PROGRAMS[zlib.crc32(command.encode()) % len(PROGRAMS)]}
    if limit is None or (isinstance(limit, int | float) and MAX_SECONDS < limit <= 604800):
        body = {**body, "timeout_seconds": MAX_SECONDS}
    return body


def _is_beyond_a_schema(case: Any, response: Any) -> bool:
    """No schema can say which page tokens were handed out, which users an image has, what is in an archive, which
    texts are image names, how long the parts of a path may be, or how parts go together."""
    if _operation_id(case) in ("uploadFiles", "downloadFiles", "importBox") or "/files/" in case.path:
        return True
    if _operation_id(case) in ("createBox", "startBox", "startExecution", "runCommand", "setWarmPools"):
        message = _error(response).get("message", "")
        return message.startswith(TOGETHER) or any(
            reason in message for reason in ("no matching entries in", "is no image name")
        )
    return not {"page_token", "pageToken"}.isdisjoint(case.query or {})


def _is_built(case: Any) -> bool:
    definition = case.operation.definition.raw
    return find_handler(definition["tags"][0], definition["operationId"]) is not None


def _operation_id(case: Any) -> str:
    return str(case.operation.definition.raw["operationId"])


def _json(response: Any) -> Any:
    try:
        return json.loads(response.content)
    except ValueError:
        return None


def _type_of(response: Any) -> str:
    return str((response.headers.get("content-type") or [""])[0]).partition(";")[0]


def _error(response: Any) -> dict[str, Any]:
    body = _json(response)
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


@schemathesis.serializer("application/x-tar")
def _archive(context: Any, value: Any) -> bytes:
    """The generated bytes as a file in an archive, or, once in four times, for an archive."""
    content = value if isinstance(value, bytes) else str(value).encode()
    if zlib.crc32(content) % 4 == 0:
        return content
    with io.BytesIO() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo("fuzzed")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        return archive.getvalue()
