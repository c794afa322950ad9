"""Judges what follows from what a worker says of one box. Pure: no clock, no store, no network."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from ..._gen import worker_pb2 as pb
from ..states import BoxStatus, DesiredState
from ..store import Box, BoxState

OVER = "over"  # a box's `engine_life` once it is known that its run was ended from outside, not by its command
STATUS = {
    pb.BOX_STATUS_CONFIGURED: BoxStatus.CONFIGURED,
    pb.BOX_STATUS_RUNNING: BoxStatus.RUNNING,
    pb.BOX_STATUS_STOPPED: BoxStatus.STOPPED,
    pb.BOX_STATUS_PAUSED: BoxStatus.PAUSED,
    pb.BOX_STATUS_FAILED: BoxStatus.FAILED,
}


class Kind(StrEnum):
    """What is to be done."""

    ADOPT = "adopt"  # the row takes the observed state
    RESTART = "restart"  # the box should run, and its run was not ended by its command
    SETTLE = "settle"  # the box stays as it ended: desired becomes stopped
    FINISH_STOP = "finish_stop"
    MARK_GONE = "mark_gone"
    FINISH_CREATE = "finish_create"
    UNDO_CREATE = "undo_create"
    FINISH_REMOVE = "finish_remove"
    FINISH_SNAPSHOT = "finish_snapshot"  # or undo it
    FINISH_VOLUME = "finish_volume"  # or undo it
    REMOVE_ORPHAN = "remove_orphan"  # a container that no box has, or a snapshot without a row
    UNKNOWN = "unknown"  # this cluster's by its labels, and left alone


class Seen(NamedTuple):
    """A container as its worker reports it."""

    box_id: str
    generation: int
    status: BoxStatus
    interrupted: bool = False  # it was killed, and not by its worker
    unclaimed: bool = False  # it was prepared, and nobody has told its worker whose it is


class Verdict(NamedTuple):
    kind: Kind
    reason: str


def judge(box: BoxState, seen: Seen | None, engine_life: str | None) -> Verdict | None:
    """What is to be done about a box; None for nothing. `seen`: what its worker says of it now, None when it has no
    container. `engine_life`: the present life of the worker's engine, None when it is not known."""
    if seen is None:
        return _without_container(box)
    if box.status == BoxStatus.REMOVING:
        return Verdict(Kind.FINISH_REMOVE, "its removal was broken off")
    if box.status == BoxStatus.CREATING and seen.unclaimed:
        return Verdict(Kind.UNDO_CREATE, "its making was broken off; the container is that of a warm box")
    if seen.status in (BoxStatus.RUNNING, BoxStatus.PAUSED):
        return _running(box, seen, engine_life)
    if box.desired == DesiredState.RUNNING:  # also in the middle of its making, by a request that starts it
        return _ended(box, seen, engine_life)
    if box.status == BoxStatus.CREATING:
        return Verdict(Kind.FINISH_CREATE, "its making was broken off; the container is there")
    if box.status == BoxStatus.STOPPED and box.auto_remove and not was_stopped_by_worker(box.error):
        return Verdict(Kind.FINISH_REMOVE, "it is stopped, and to be removed then")
    if box.status == BoxStatus.FAILED and seen.status != BoxStatus.FAILED and not was_gone(box):
        return None  # its start failed, and it stays failed until it is started again
    if box.status != seen.status:
        return Verdict(Kind.ADOPT, f"it is {seen.status}, the row says {box.status}")
    return None


def _without_container(box: BoxState) -> Verdict | None:
    if box.status == BoxStatus.CREATING:
        return Verdict(Kind.UNDO_CREATE, "its making was broken off; there is no container")
    if box.status == BoxStatus.REMOVING:
        return Verdict(Kind.FINISH_REMOVE, "its removal was broken off")
    if box.status == BoxStatus.FAILED and was_gone(box):
        return None
    return Verdict(Kind.MARK_GONE, "its container is gone")


def _running(box: BoxState, seen: Seen, engine_life: str | None) -> Verdict | None:
    if box.desired == DesiredState.STOPPED:
        return Verdict(Kind.FINISH_STOP, f"it is {seen.status} and should be stopped")
    if box.status != seen.status:
        return Verdict(Kind.ADOPT, f"it is {seen.status}, the row says {box.status}")
    if engine_life and box.engine_life != engine_life:
        return Verdict(Kind.ADOPT, "it runs under another life of the engine than the row says")
    return None


def _ended(box: BoxState, seen: Seen, engine_life: str | None) -> Verdict:
    if seen.status == BoxStatus.FAILED:
        return Verdict(Kind.SETTLE, "the engine cannot run it")
    if seen.status == BoxStatus.CONFIGURED:
        return Verdict(Kind.RESTART, "its start was broken off")
    if seen.interrupted:
        return Verdict(Kind.RESTART, "it was killed, and not by its own worker")
    if box.engine_life == OVER or (box.engine_life and engine_life and box.engine_life != engine_life):
        return Verdict(Kind.RESTART, "it ended with its engine")
    return Verdict(Kind.SETTLE, "its command ended by itself")


GONE = "its container is gone"  # the `error` of a box whose container is gone


def was_gone(box: BoxState) -> bool:
    """Whether the box's row says that its container is gone."""
    return (box.error or "").startswith(GONE)


_BY_WORKER = "its worker stopped it: "


def stopped_by_worker(reason: str) -> str:
    """The `error` of a box that its worker stopped unasked."""
    return f"{_BY_WORKER}{reason}"


def was_stopped_by_worker(error: str | None) -> bool:
    """Whether that is the `error` of such a box. Nobody asked for its end, so it is not removed for having ended."""
    return (error or "").startswith(_BY_WORKER)


def state_of(box: Box) -> BoxState:
    """The parts of a row that `judge` reads."""
    return BoxState(box.id, box.generation, box.status, box.desired, box.engine_life, box.error, box.spec.auto_remove)


def seen_of(state: pb.Box) -> Seen:
    """What `judge` reads of a worker's answer about a box."""
    return Seen(state.box_id, state.generation, STATUS[state.status], state.interrupted, state.unclaimed)
