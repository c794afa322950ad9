"""What a case is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .harness import Result
from .sides import Sdk, Server


@dataclass(frozen=True)
class Bench:
    """What cases are measured with. `share`: of the rounds that a case has by itself."""

    server: Server
    sdk: Sdk
    share: float = 1.0

    def rounds(self, count: int) -> int:
        return max(round(count * self.share), 2)


@dataclass(frozen=True)
class Case:
    """`on_demand`: measured only when it is named."""

    name: str
    run: Callable[[Bench], Iterator[Result]]
    on_demand: bool = False
