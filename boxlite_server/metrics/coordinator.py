"""What a coordinator counts and measures on the way; `coordinator/gauges.py` has what a scrape reads."""

from __future__ import annotations

from .calls import Calls
from .registry import LONG, SHORT, counter, counters, histogram, histograms

# ---- requests: labels are operations of openapi.yaml, "none" for any other path, and statuses of HTTP

NO_OPERATION = "none"

REQUESTS = counters(
    "boxlite_requests",
    "Requests that were answered, by operation and status; 101 is an open WebSocket, 0 a request without an answer.",
    "operation",
    "status",
)
REQUEST_SECONDS = histograms(
    "boxlite_request_duration_seconds", "From a request's head to the head of its answer.", "operation", buckets=LONG
)

# ---- workers

CALLS = Calls("boxlite_rpc_client", "Calls to workers")

PLACEMENTS = counters(
    "boxlite_placements",
    "Searches for a worker, by what it was for and whether one was found.",
    "what",
    "result",
    known=((what, result) for what in ("box", "volume", "pull") for result in ("placed", "refused")),
)
NOT_PLACED = counters(
    "boxlite_placement_refusals",
    "Searches that found no worker, by each reason that ruled workers out.",
    "reason",
    known=(
        *("volumes", "disk_limit", "draining", "unreachable", "places", "machine_cpus", "promised_cpus", "memory"),
        *("failed", "no_worker"),
    ),
)

# ---- stages

CREATE_SECONDS = histograms(
    "boxlite_create_stage_seconds",
    "The stages of creating a box: claim a warm box, place it on a worker, have the worker make it, write what came.",
    "stage",
    buckets=LONG,
    known=("claim", "place", "make", "write"),
)
EXEC_SECONDS = histograms(
    "boxlite_exec_stage_seconds",
    "The stages of a command: see that the box runs, have the worker start the command, or run it to its end.",
    "stage",
    buckets=LONG,
    known=("box", "start", "run"),
)

# ---- what acts unasked

LEASE_SECONDS = histogram("boxlite_lease_wait_seconds", "How long operations waited for their turn.", SHORT)
LEASES_BUSY = counter("boxlite_leases_busy", "Operations that gave up waiting for their turn.")
LEASES_LOST = counter("boxlite_leases_lost", "Leases that ran out and are another coordinator's now.")

RECONCILE_SECONDS = histogram("boxlite_reconcile_duration_seconds", "How long looks at the whole fleet took.", LONG)
RECONCILE_FAULTS = counter("boxlite_reconcile_faults", "Looks at the whole fleet that failed.")
REPAIRS = counters(
    "boxlite_reconcile_actions",
    "What was done to bring workers and rows in line, by kind and result.",
    "kind",
    "result",
)

AUDIT_LINES = counter("boxlite_audit_lines", "Lines of the audit.")
AUDIT_MISSING = counter("boxlite_audit_lines_missing", "Lines that the audit did not take; see its gaps.")
