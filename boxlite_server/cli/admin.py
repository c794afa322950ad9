"""The operator's commands, over the coordinator's REST API: list, drain and undrain workers, and reconcile."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from ..client import output
from ..client.api import ApiClient
from ..errors import InvalidStateError, NotFoundError, TimedOutError, UpstreamUnavailableError

POLL_SECONDS = 1.0

Worker = dict[str, Any]


def workers(api: ApiClient, arguments: argparse.Namespace) -> int:
    """Print a table of all workers, or JSON."""
    found = sorted(_all(api), key=lambda worker: worker["name"])
    if arguments.format == "json":
        print(output.as_json(found))
        return 0
    header = ("NAME", "ID", "STATUS", "BOXES", "CPUS", "MEMORY (MIB)", "HEARTBEAT")
    print(output.table(header, [_row(worker) for worker in found]))
    for worker in found:
        if worker.get("reason"):
            print(worker["reason"], file=sys.stderr)
        if refused := worker.get("orphans", {}).get("refused"):
            what = "an orphan" if refused == 1 else f"{refused} orphans"
            print(
                f"worker {worker['name']} has {what} that it does not remove; "
                "`boxlite-server reconcile --dry-run` says why",
                file=sys.stderr,
            )
    return 0


def drain(api: ApiClient, arguments: argparse.Namespace, pause: Callable[[float], None] = time.sleep) -> int:
    """Keep new boxes away from a worker. With --wait, return when no box holds a reservation there.

    Raises `TimedOutError` after --timeout seconds, and `InvalidStateError` when the worker is undrained meanwhile.
    """
    worker = _set_status(api, arguments.worker, "draining")
    print(f"{worker['name']} takes no new boxes; {_left(worker)}", flush=True)
    if arguments.wait:
        _wait(api, worker, arguments.timeout, pause)
    return 0


def undrain(api: ApiClient, arguments: argparse.Namespace) -> int:
    """Let a worker take new boxes again."""
    worker = _set_status(api, arguments.worker, "active")
    print(f"{worker['name']} takes new boxes")
    return 0


def reconcile(api: ApiClient, arguments: argparse.Namespace) -> int:
    """Reconcile database and workers, or print what that would do; the exit code is 1 if something failed."""
    body = {"dry_run": arguments.dry_run, "worker": arguments.worker}
    answer = api.parsed(api.request("POST", api.path("admin", "reconcile"), body))
    actions = answer["actions"]
    if actions:
        header = ("WORKER", "BOX OR VOLUME", "GENERATION", "ACTION", "REASON", "OUTCOME")
        print(output.table(header, [_action_row(action, arguments.dry_run) for action in actions]))
    else:
        print("nothing to do")
    for worker in answer["unreachable"]:
        print(f"{worker['worker']} could not be asked: {worker['reason']}", file=sys.stderr)
    return 1 if answer["unreachable"] or any(action["error"] for action in actions) else 0


def _action_row(action: dict[str, Any], dry_run: bool) -> tuple[str, ...]:
    if action["error"]:
        outcome = f"failed: {action['error']}"
    elif action["kind"] == "unknown":
        outcome = "left alone"
    elif action["due_at"]:
        outcome = f"not before {action['due_at']}"
    elif dry_run:
        outcome = "would be done"
    else:
        outcome = "done" if action["done"] else "not done"
    what = action["box_id"] or f"volume {action['volume_id']}"
    return (action["worker"], what, str(action["generation"] or ""), action["kind"], action["reason"], outcome)


def _wait(api: ApiClient, worker: Worker, timeout: float | None, pause: Callable[[float], None]) -> None:
    ends_at = None if timeout is None else time.monotonic() + timeout
    name, shown = worker["name"], (_left(worker), worker.get("reason"))
    while worker["reserved"]["boxes"]:
        if ends_at is not None and time.monotonic() >= ends_at:
            raise TimedOutError(f"{name} is not empty after {timeout:.0f} s: {_left(worker)}; it goes on draining")
        pause(POLL_SECONDS)
        try:
            worker = api.get(api.path("admin", "workers", worker["id"]))
            now = (_left(worker), worker.get("reason"))
        except UpstreamUnavailableError as exc:  # the worker goes on draining while the coordinator is restarted
            now = (exc.message, None)
        if not worker["draining"]:
            raise InvalidStateError(f"{name} was taken back meanwhile; {_left(worker)}")
        if shown != now:
            shown = now
            print(f"{name}: " + "; ".join(text for text in now if text), flush=True)


def _set_status(api: ApiClient, id_or_name: str, status: str) -> Worker:
    worker = _find(api, id_or_name)
    return api.parsed(api.request("PATCH", api.path("admin", "workers", worker["id"], "status"), {"status": status}))


def _find(api: ApiClient, id_or_name: str) -> Worker:
    """Find a worker by its id, else by its name. Raises `NotFoundError`."""
    found = _all(api)
    for key in ("id", "name"):
        for worker in found:
            if worker[key] == id_or_name:
                return worker
    raise NotFoundError(f"worker not found: {id_or_name}; `boxlite-server workers` lists all workers")


def _all(api: ApiClient) -> list[Worker]:
    return list(api.get(api.path("admin", "workers"))["workers"])


def _row(worker: Worker) -> tuple[str, ...]:
    reserved, capacity = worker["reserved"], worker["capacity"]
    status = worker["status"]
    if worker["draining"] and status != "draining":
        status += ", draining"
    return (
        worker["name"],
        worker["id"],
        status,
        _of(reserved["boxes"], capacity["max_boxes"]),
        _of(reserved["cpus"], capacity["cpu_limit"]),
        _of(reserved["memory_mib"], capacity["memory_mib"]),
        output.age(worker["last_heartbeat"]),
    )


def _of(taken: int, limit: int | None) -> str:
    return str(taken) if limit is None else f"{taken}/{limit}"


def _left(worker: Worker) -> str:
    count = worker["reserved"]["boxes"]
    return f"{count or 'no'} {'box holds' if count == 1 else 'boxes hold'} room there"
