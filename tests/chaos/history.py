"""What was asked of the cluster and what it answered, one record per request, as lines of JSON."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ACKNOWLEDGED = "acknowledged"  # 2xx: it is done, and has to stay done
REFUSED = "refused"  # an answer in the contract's form that says no
UNREACHED = "unreached"  # no connection came about: certainly nothing was done
UNKNOWN = "unknown"  # no answer, or one that leaves it open: perhaps it was done, perhaps it will be


@dataclass
class Record:
    """One request. `begin` and `end` are seconds since the start of the run."""

    client: str
    op: str
    args: dict[str, Any]
    begin: float
    end: float = 0.0
    outcome: str = UNKNOWN
    status: int | None = None
    result: dict[str, Any] = field(default_factory=dict)  # what was learnt from the answer
    error: str = ""
    flaw: str = ""  # what is wrong with the answer, whatever was asked

    @property
    def acknowledged(self) -> bool:
        return self.outcome == ACKNOWLEDGED

    @property
    def perhaps(self) -> bool:
        """Whether a request that was not acknowledged may have been done, possibly by a server that then failed."""
        return self.outcome == UNKNOWN or (self.outcome == REFUSED and (self.status or 0) >= 500)

    def line(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if value not in ("", {}, None)})


class History:
    """All records, in the order in which the requests ended; also in a file."""

    def __init__(self, path: Path) -> None:
        self.records: list[Record] = []
        self._lock = threading.Lock()
        self._file = path.open("w")
        self._zero = time.monotonic()

    def now(self) -> float:
        return round(time.monotonic() - self._zero, 3)

    def begin(self, client: str, op: str, args: Mapping[str, Any]) -> Record:
        return Record(client, op, dict(args), self.now())

    def end(self, record: Record) -> Record:
        record.end = self.now()
        with self._lock:
            self.records.append(record)
            self._file.write(record.line() + "\n")
            self._file.flush()
        return record
