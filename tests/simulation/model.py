"""What must be true of a cluster, as seen by its clients. Nothing here knows how the product does it.

A box is known by what the client knows: the creation that it asked for. `possible` holds the states that the
box may be in when all is quiet again: one, once an operation that nothing else overlapped has succeeded; more,
while operations are under way, overlapped, or ended without anybody knowing how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ABSENT, CONFIGURED, RUNNING, STOPPED, FAILED = "absent", "configured", "running", "stopped", "failed"


@dataclass(eq=False)
class Claim:
    """One box that a client asked for, made or not."""

    number: int
    name: str | None
    cpus: int
    memory_mib: int
    is_started: bool = False  # by the request that creates it
    possible: set[str] = field(default_factory=lambda: {ABSENT})
    id: str | None = None  # as soon as an answer has named it
    is_in_doubt: bool = False  # nobody knows whether it was made, and nobody is asking
    buried_at: list[str] = field(default_factory=list)  # the worker that says that it is not there any more
    under_way: set[Attempt] = field(default_factory=set)
    snapshots: list[str] = field(default_factory=list)  # names of those that were acknowledged

    def begin(self, target: str) -> Attempt:
        attempt = Attempt(self, set(self.possible), is_alone=not self.under_way)
        for other in self.under_way:
            other.is_alone = False
        self.under_way.add(attempt)
        self.possible.add(target)
        return attempt

    def befalls(self, outcome: Mapping[str, set[str]]) -> None:
        """Apply an event that no client asked for: what becomes of the box in each state."""
        self.possible = set().union(*(outcome.get(state, {state}) for state in self.possible))
        for attempt in self.under_way:
            attempt.is_alone = False


@dataclass(eq=False)
class Attempt:
    """An operation on a box, from the request to the answer."""

    claim: Claim
    before: set[str]
    is_alone: bool

    def succeeded(self, state: str) -> None:
        self._end({state})

    def refused(self) -> None:
        """The answer says that nothing was done."""
        self._end(self.before)

    def unknown(self, *states: str) -> None:
        """No answer, or one that leaves it open; `states`: what else it may have led to."""
        self.is_alone = False
        self._end(set(states))

    def gone(self) -> None:
        """The answer says that the box is not there; nothing brings it back."""
        self.claim.possible = {ABSENT}
        self.is_alone = False
        self._end(set())

    def _end(self, states: set[str]) -> None:
        self.claim.under_way.discard(self)
        if self.is_alone:
            self.claim.possible = set(states)
        elif ABSENT in self.claim.possible or ABSENT not in states:
            self.claim.possible |= states
