"""Rows and messages as the JSON of openapi.yaml, and page tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, TypeVar

from ... import errors
from ..._gen import worker_pb2 as pb
from ...formats import parse_json, timestamp
from ..control.reconcile import Outcome
from ..core import Core
from ..domain.images import Image
from ..fleet.registry import UNREACHABLE, Fleet
from ..spec import DEFAULT_SECURITY, Spec
from ..states import BoxStatus, WorkerStatus
from ..store import Box, Event, Load, Snapshot, Volume, Worker
from .errors import IS_OPERATOR
from .utf8 import unfinished

A = TypeVar("A")
B = TypeVar("B")

_EXECUTION_STATUS = {
    pb.EXECUTION_STATUS_RUNNING: "running",
    pb.EXECUTION_STATUS_COMPLETED: "completed",
    pb.EXECUTION_STATUS_KILLED: "killed",
    pb.EXECUTION_STATUS_TIMED_OUT: "timed_out",
}

_FILE_KIND = {
    pb.FILE_KIND_FILE: "file",
    pb.FILE_KIND_DIRECTORY: "directory",
    pb.FILE_KIND_LINK: "link",
    pb.FILE_KIND_OTHER: "other",
}

MAX_LISTED = 4096  # characters of what a box was made with, in a list

# The server's internal states, as clients see them: a box is visible from the reservation of its name to its release.
_BOX_STATUS = {BoxStatus.CREATING: BoxStatus.CONFIGURED, BoxStatus.REMOVING: BoxStatus.STOPPING}


def box(
    row: Box, worker: Worker | None, fleet: Fleet, *, in_list: bool = False, with_values: bool = False
) -> dict[str, Any]:
    """A Box. Its status is `unknown` while its worker is unreachable. Only operators see the worker and its host.

    `with_values`: the values of its environment are shown, to a caller who may run `env` in the box anyway. The answer
    must not be kept then, as those to requests with an Idempotency-Key are. `in_list`: what is long is left out.
    """
    lost = fleet.why_unreachable(worker) if worker else None
    is_operator = IS_OPERATOR.get()
    return {
        "box_id": row.id,
        "name": row.name,
        "status": BoxStatus.UNKNOWN if lost else _BOX_STATUS.get(row.status, row.status),
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
        "started_at": timestamp(row.started_at),
        "stopped_at": timestamp(row.stopped_at),
        "pid": row.pid if is_operator else None,
        "exit_code": row.exit_code,
        "error_message": (lost if is_operator or not lost else UNREACHABLE) or row.error,
        "image": row.spec.image,
        "cpus": row.cpus,
        "memory_mib": row.memory_mib,
        "disk_size_gb": row.spec.disk_size_gb,
        "labels": row.labels,
        "auto_remove": row.spec.auto_remove,
        "auto_stop": row.spec.auto_stop,
        "auto_delete": row.spec.auto_delete,
        "auto_resume": row.spec.auto_resume,
        "ports": _ports(row),
        "worker": worker.name if worker and is_operator else None,
        "supervisor": row.supervisor if row.status == BoxStatus.RUNNING else None,
        **_made_of(row.spec, in_list=in_list, with_values=with_values),
    }


def _made_of(spec: Spec, *, in_list: bool, with_values: bool) -> dict[str, Any]:
    """What a client asked for when it created a box, beside what other fields have."""
    long = {
        "entrypoint": list(spec.entrypoint) or None,
        "cmd": list(spec.cmd) or None,
        "env": dict(spec.env) if with_values else dict.fromkeys(spec.env),
        "volumes": [
            {
                "managed_volume": mount.volume,
                "host_path": mount.host_path,
                "guest_path": mount.guest_path,
                "read_only": mount.read_only,
            }
            for mount in spec.mounts
        ],
    }
    paths = [path for mount in spec.mounts for path in (mount.host_path or "", mount.guest_path)]
    if in_list and sum(map(len, (*spec.entrypoint, *spec.cmd, *spec.env, *paths))) > MAX_LISTED:
        long = dict.fromkeys(long)
    return {
        **long,
        "working_dir": spec.working_dir or None,
        "user": spec.user or None,
        "tty": spec.tty,
        "network_mode": spec.network,  # released SDKs read something else under `network`
        "security": spec.security or DEFAULT_SECURITY,
        "advanced": {"capabilities": {"add": list(spec.cap_add), "drop": list(spec.cap_drop)}},
    }


async def placed_box(core: Core, row: Box, *, with_values: bool = False) -> dict[str, Any]:
    """A Box, with its worker read from the store."""
    return box(row, await core.store.get_worker(row.worker_id), core.fleet, with_values=with_values)


def _ports(row: Box) -> list[dict[str, Any]]:
    """The ports as they are open now, or as the box was created with while it does not run."""
    if row.status in (BoxStatus.RUNNING, BoxStatus.PAUSED, BoxStatus.STOPPING) and row.published:
        return row.published
    return [{**port.to_json(), "address": None} for port in row.spec.ports]


def snapshot(row: Snapshot) -> dict[str, Any]:
    """A Snapshot. A box has no disk beside its container's, so `guest_disk_bytes` is 0."""
    return {
        "id": row.id,
        "box_id": row.box_id,
        "name": row.name,
        "created_at": int(row.created_at),
        "container_disk_bytes": row.container_disk_bytes,
        "guest_disk_bytes": 0,
        "size_bytes": row.size_bytes,
    }


def execution(message: pb.Execution) -> dict[str, Any]:
    """An Execution."""
    return {
        **_outcome(message),
        "started_at": timestamp(message.started_at_ms / 1000),
        "command": message.command or None,
        "args": list(message.args),
        "command_truncated": message.command_truncated,
    }


def _outcome(message: pb.Execution) -> dict[str, Any]:
    return {
        "execution_id": message.execution_id,
        "status": _EXECUTION_STATUS[message.status],
        "exit_code": message.exit_code if message.HasField("exit_code") else None,
        "duration_ms": message.duration_ms if message.HasField("duration_ms") else None,
        "error_message": message.error_message or None,
    }


def run(result: pb.RunResult, *, raw: bool) -> dict[str, Any]:
    """A RunCommandResponse. `raw`: output is base64 of its bytes; otherwise it is text, in which bytes that are not
    UTF-8 become U+FFFD, and which does not end inside a character where it was cut."""
    view = _outcome(result.ended)
    view["error_message"] = view["error_message"] or result.loss or None
    for name, data, dropped in (
        ("stdout", result.stdout, result.stdout_dropped_bytes),
        ("stderr", result.stderr, result.stderr_dropped_bytes),
    ):
        if raw:
            view[f"{name}_base64"] = base64.b64encode(data).decode()
        else:
            rest = unfinished(data) if dropped else 0
            dropped += rest
            view[name] = data[: len(data) - rest].decode("utf-8", "replace")
        view[f"{name}_truncated"] = dropped > 0 or bool(result.loss)
        view[f"{name}_dropped_bytes"] = dropped
    return view


def file_entry(entry: pb.FileEntry, *, with_etag: bool = False) -> dict[str, Any]:
    """A FileEntry. Bytes of names that are not UTF-8 become U+FFFD."""
    kind = _FILE_KIND[entry.kind]
    view = {
        "name": entry.name.decode("utf-8", "replace"),
        "type": kind,
        "size": entry.size,
        "mode": f"{entry.mode & 0o7777:04o}",
        "modified_at": _time(entry.modified_ns // 10**9),
        "link_target": entry.link_text.decode("utf-8", "replace") if kind == "link" else None,
    }
    if with_etag:
        view["etag"] = f'"{entry.version}"' if kind == "file" else None
    return view


def _time(seconds: int) -> str | None:
    """A time that a box has set; None: no calendar has it."""
    try:
        return timestamp(seconds)
    except (ValueError, OverflowError, OSError):
        return None


def image(found: Image) -> dict[str, Any]:
    """An Image."""
    return {
        "reference": found.reference,
        "repository": found.repository,
        "tag": found.tag,
        "id": found.id,
        "cached_at": timestamp(found.cached_at),
        "size_bytes": found.size_bytes,
    }


def image_detail(found: Image, versions: list[Image]) -> dict[str, Any]:
    """An ImageDetail: the image, and `versions`: all versions of all tags of its name."""
    return {
        **image(found),
        "name": found.repository,
        "aliases": [],
        "versions": [
            {"digest": v.id, "source_ref": v.reference, "recorded_at": timestamp(v.cached_at)} for v in versions
        ],
        "history": [],
    }


def event(found: Event, *, for_operator: bool) -> dict[str, Any]:
    """An Event. Only operators see the worker."""
    return {
        "id": found.id,
        "time": timestamp(found.at),
        "kind": found.kind,
        "prefix": found.prefix or None,
        "box_id": found.box_id,
        "name": found.name,
        "status": found.status,
        "worker": found.worker if for_operator else None,
        "details": found.details,
    }


def volume(row: Volume) -> dict[str, Any]:
    """A Volume. Its size is not given: the engine would have to read the whole volume to tell."""
    return {
        "id": row.id,
        "name": row.name,
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
        "size_bytes": None,
        "state": row.state,
    }


def reconciled(outcome: Outcome, dry_run: bool, now: float) -> dict[str, Any]:
    """A ReconcileResponse."""
    return {
        "dry_run": dry_run,
        "actions": [
            {
                "kind": str(action.kind),
                "worker": outcome.names[action.worker_id],
                "box_id": action.box_id or None,
                "volume_id": action.volume_id or None,
                "generation": action.generation or None,
                "reason": action.reason,
                "due_at": timestamp(action.due_at) if action.due_at > now else None,
                "done": done,
                "error": error,
            }
            for action, done, error in outcome.done
        ],
        "unreachable": [{"worker": name, "reason": reason} for name, reason in outcome.unreachable.items()],
    }


async def worker_with_load(core: Core, row: Worker) -> dict[str, Any]:
    """A Worker, with its load read from the store."""
    return worker(row, core, await core.store.load(row.id))


def worker(row: Worker, core: Core, load: Load) -> dict[str, Any]:
    """A Worker, without its secret."""
    fleet, orphans = core.fleet, core.reconciler.orphans(row.id)
    return {
        "id": row.id,
        "name": row.name,
        "url": row.url,
        "status": fleet.status(row),
        "epoch": row.epoch,
        "reason": fleet.why_unreachable(row),
        "draining": row.status == WorkerStatus.DRAINING,
        "running_boxes": load.running,
        "last_heartbeat": timestamp(row.last_heartbeat),
        "registered_at": timestamp(row.registered_at),
        "labels": row.labels,
        "capacity": {
            "cpus": row.cpus,
            "cpu_limit": row.cpu_limit,
            "memory_mib": row.memory_mib,
            "max_boxes": row.max_boxes,
        },
        "disk_limit": row.disk_limit or "unsupported",
        "reserved": {"cpus": load.cpus, "memory_mib": load.memory_mib, "boxes": load.boxes},
        "orphans": {"total": orphans.total, "refused": orphans.refused},
        "version": row.version,
        "engine_version": row.engine_version,
    }


def after(token: str | None) -> tuple[float, str] | None:
    """Where a page begins, by its token: behind the time and the id of the last entry of the page before. Raises
    InvalidArgumentError."""
    return decode_token(token, float, str) if token else None


def page(rows: list[A], size: int | None, place: Callable[[A], tuple[float | str, str]]) -> tuple[list[A], str | None]:
    """The first `size` rows, and the token of the next page; None where these are all. `place`: a row's sort key."""
    if size is None or len(rows) <= size:
        return rows, None
    return rows[:size], encode_token(place(rows[size - 1]))


def encode_token(place: tuple[float | str, str]) -> str:
    """A page token that names the last entry of a page: `place` is that entry's sort key."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def decode_token(token: str, first: Callable[[Any], A], second: Callable[[Any], B]) -> tuple[A, B]:
    """The sort key in a page token, its parts converted by `first` and `second`. Raises InvalidArgumentError."""
    try:
        one, two = parse_json(base64.b64decode(token, altchars=b"-_", validate=True).decode())
        place = first(one), second(two)
        if not all(str(part).isprintable() for part in place):
            raise ValueError("no database has such characters in its keys")
        return place
    except (ValueError, TypeError, OverflowError):
        raise foreign_token() from None


def foreign_token() -> errors.InvalidArgumentError:
    return errors.InvalidArgumentError(
        "this server did not issue this page_token; use next_page_token of the page before"
    )
