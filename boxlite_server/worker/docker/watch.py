"""What the engine's events tell of the worker's containers: that a container has changed, and why it stopped.

A container stops because its command ended, because this worker stopped it, or because somebody else had the engine
kill it: dockerd kills all containers when it ends, and after a crash it kills those that it finds running. The engine
reports each kill that it was told to make before the end that the kill leads to. A kill by the kernel for want of
memory is another event, and comes before that end too; it may have killed any process of the container.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ..runtime import BoxState, Owner
from .engine import Engine, engine_errors
from .labels import WORKER_LABEL

NEWS_PATIENCE = 2.0  # seconds that a report of an end waits for the event that tells its reason
_RECONNECT_FIRST, _RECONNECT_LAST = 0.5, 15.0  # seconds between two attempts

# Events after which a box has another state. What this worker asks for begins with other events, or has its answer.
_CHANGES = frozenset({"start", "die", "pause", "unpause", "destroy"})
_KILL_TO_END = 5.0  # seconds from a kill for want of memory to an end that follows from it

log = logging.getLogger(__name__)


class Watch:
    """Keeps the states of containers while it hears the engine's events, and which runs were interrupted.

    The states spare the heartbeat a call for each box. A state is remembered only if no event came between the call
    for it and the answer.
    """

    def __init__(self, engine: Engine, owner: Callable[[], Owner]) -> None:
        self._engine = engine
        self._owner = owner
        self._changed = threading.Condition()
        self._listening_since: float | None = None  # Unix time
        self._last_event: int | None = None  # Unix time in nanoseconds
        self._events = 0
        self._states: dict[str, BoxState] = {}
        self._life = ""  # the engine's; empty: not asked since the events began
        # By container id:
        self._stops: set[str] = set()  # stopped by this worker; until the next start
        self._starts: set[str] = set()  # started by this worker, and not yet reported
        self._signals: Counter[tuple[str, str]] = Counter()  # sent by this worker, and not yet reported
        self._killed: set[str] = set()  # by somebody else, and not ended yet
        self._interrupted: set[str] = set()
        self._ends: dict[str, float] = {}  # when the container last ended; Unix time
        self._kills: dict[str, float] = {}  # when the kernel last killed a process at the memory limit; Unix time
        self._removals: set[str] = set()  # being removed by this worker, by the container's name
        # By exec id:
        self._commands: dict[str, threading.Event] = {}  # whose end somebody waits for

    # ---- states ----

    def known(self, container_id: str) -> BoxState | None:
        """The container's state, if it is remembered."""
        with self._changed:
            return self._states.get(container_id)

    def marker(self) -> int:
        """To be taken before the call for a state, and given to `remember` with the answer."""
        with self._changed:
            return self._events

    def remember(self, container_id: str, state: BoxState, marker: int) -> None:
        """Remember the state, unless an event came since `marker`."""
        with self._changed:
            if self._listening_since is not None and self._events == marker:
                self._states[container_id] = state

    def forget(self, container_id: str) -> None:
        """Forget the container's state, which has changed without an event."""
        with self._changed:
            self._events += 1
            self._states.pop(container_id, None)

    def life(self) -> str:
        """The life of the engine. It is asked for once while the events go on: the end of the engine ends them."""
        with self._changed:
            known, began = self._life, self._listening_since
        if known:
            return known
        life = self._engine.life()
        with self._changed:
            if began is not None and self._listening_since == began:
                self._life = life
        return life

    def known_life(self) -> str | None:
        """`life`, where the engine need not be asked for it."""
        with self._changed:
            return self._life or None

    # ---- ends ----

    def starting(self, container_id: str) -> None:
        """Note that this worker is about to start the container."""
        with self._changed:
            self._starts.add(container_id)
            self._stops.discard(container_id)
            self._interrupted.discard(container_id)
            self._kills.pop(container_id, None)

    def stopping(self, container_id: str) -> None:
        """Note that this worker is about to stop the container."""
        with self._changed:
            self._stops.add(container_id)

    def removing(self, container_name: str) -> None:
        """Note that this worker is about to remove the container."""
        with self._changed:
            self._removals.add(container_name)

    def not_removed(self, container_name: str) -> None:
        """Note that the container is not removed after all, or was not there."""
        with self._changed:
            self._removals.discard(container_name)

    def was_stopped(self, container_id: str) -> bool:
        """Whether this worker has stopped the container since its last start."""
        with self._changed:
            return container_id in self._stops

    def signalling(self, container_id: str, number: int) -> None:
        """Note that this worker is about to have the engine signal the container."""
        with self._changed:
            self._signals[container_id, str(number)] += 1

    def interrupted(self, container_id: str, finished: float) -> bool:
        """Whether the engine killed the container's last run, which ended at the Unix time `finished`, and this worker
        had not asked for it. Waits for the engine's report of that end if the report must be on its way."""
        with self._changed:
            if container_id in self._stops:
                return False
            self._changed.wait_for(lambda: not self._expects(container_id, finished), NEWS_PATIENCE)
            return container_id in self._interrupted

    def ran_out_of_memory(self, container_id: str, finished: float) -> bool:
        """Whether the container's last run, which ended at the Unix time `finished`, ended because the kernel killed
        a process of it at the memory limit. Waits like `interrupted`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._expects(container_id, finished), NEWS_PATIENCE)
            killed_at = self._kills.get(container_id, -math.inf)
            return container_id not in self._stops and finished - killed_at < _KILL_TO_END

    def _expects(self, container_id: str, finished: float) -> bool:
        since = self._listening_since
        return since is not None and since <= finished and self._ends.get(container_id, 0.0) < finished

    def command_end(self, exec_id: str) -> threading.Event:
        """An event that is set when the engine reports the command's end, or when its reports are interrupted. The
        caller ends with `forget_command`."""
        with self._changed:
            return self._commands.setdefault(exec_id, threading.Event())

    def forget_command(self, exec_id: str) -> None:
        with self._changed:
            self._commands.pop(exec_id, None)

    # ---- events ----

    def run(self, on_change: Callable[[], None], stopping: threading.Event) -> None:
        """See `BoxRuntime.watch`."""
        pause = _RECONNECT_FIRST
        while not stopping.is_set():
            try:
                # The worker's cluster may change meanwhile, so this hears of its containers in every cluster.
                filters = {"type": "container", "label": f"{WORKER_LABEL}={self._owner().worker_id}"}
                began = time.time()
                with engine_errors("cannot watch the engine"):
                    events = self._engine.api.events(since=self._since(), filters=filters, decode=True)
                    self._begin(began)
                    on_change()  # whatever happened while nobody watched
                    pause = _RECONNECT_FIRST
                    for event in events:
                        if self._note(event):
                            on_change()
                        if stopping.is_set():
                            return
            except Exception as exc:
                log.debug("watching the engine: %s", exc)
            finally:
                self._end()
            if stopping.wait(pause):
                return
            pause = min(pause * 2, _RECONNECT_LAST)

    def _since(self) -> str | None:
        """The time just after the last event heard, from which the engine, which keeps some events, repeats them."""
        if self._last_event is None:
            return None
        seconds, nanoseconds = divmod(self._last_event + 1, 1_000_000_000)
        return f"{seconds}.{nanoseconds:09d}"

    def _begin(self, now: float) -> None:
        with self._changed:
            self._listening_since = now

    def _end(self) -> None:
        with self._changed:
            self._listening_since = None
            self._events += 1
            self._states.clear()
            self._removals.clear()  # the next stream begins with a report anyway
            self._life = ""
            for ended in self._commands.values():
                ended.set()  # the end may go unreported, so those who wait must look for themselves
            self._changed.notify_all()

    def _note(self, event: Mapping[str, Any]) -> bool:
        """Take account of an event. Returns whether it has changed the state of a box without this worker."""
        action, container_id = event["Action"], event["Actor"]["ID"]
        about = event["Actor"].get("Attributes") or {}
        name = about.get("name", "")
        with self._changed:
            self._last_event = event.get("timeNano") or self._last_event
            if action.startswith("exec_"):  # commands in a box change nothing about the box
                if action == "exec_die" and (ended := self._commands.get(about.get("execID", ""))):
                    ended.set()
                return False
            if action == "oom":
                self._kills[container_id] = event.get("timeNano", 0) / 1e9 or time.time()
                return False
            self._events += 1
            self._states.pop(container_id, None)
            match action:
                case "kill":
                    self._note_kill(container_id, about.get("signal", ""))
                case "die":
                    if container_id in self._killed:
                        self._interrupted.add(container_id)
                    self._killed.discard(container_id)
                    self._ends[container_id] = event.get("timeNano", 0) / 1e9 or time.time()
                    self._changed.notify_all()
                    return name not in self._removals
                case "start":
                    was_asked_for = container_id in self._starts
                    self._starts.discard(container_id)
                    self._killed.discard(container_id)
                    self._interrupted.discard(container_id)
                    return not was_asked_for
                case "destroy":
                    self._forget(container_id)
                    was_asked_for = name in self._removals
                    self._removals.discard(name)
                    return not was_asked_for
            return action in _CHANGES

    def _note_kill(self, container_id: str, number: str) -> None:
        if self._signals[container_id, number] > 0:
            self._signals[container_id, number] -= 1
        elif container_id not in self._stops:
            self._killed.add(container_id)

    def _forget(self, container_id: str) -> None:
        for marked in (self._stops, self._starts, self._killed, self._interrupted):
            marked.discard(container_id)
        self._ends.pop(container_id, None)
        self._kills.pop(container_id, None)
        for key in [key for key, count in self._signals.items() if key[0] == container_id or count <= 0]:
            del self._signals[key]
