"""What a worker counts and measures on the way; `worker/monitoring/gauges.py` has what a scrape reads."""

from __future__ import annotations

from .calls import Calls
from .registry import LONG, SHORT, counter, counters, histograms

CALLS = Calls("boxlite_rpc_server", "Calls from coordinators")

BOX_SECONDS = histograms(
    "boxlite_worker_box_stage_seconds",
    "The stages of making and starting a box: find or pull the image, make the container, start it, and from then "
    "until the main command runs.",
    "stage",
    buckets=LONG,
    known=("image_prepare", "box_config", "box_spawn", "container_init"),
)

START_SECONDS = histograms(
    "boxlite_worker_command_start_seconds",
    "How long it took to start a command, by what started it.",
    "by",
    buckets=SHORT,
    known=("supervisor", "engine"),
)
BY_ENGINE = counters(
    "boxlite_worker_commands_by_engine",
    "Commands that the engine started, by why no supervisor did.",
    "reason",
    known=("disabled", "engine_blind", "box_without", "not_connected", "unsupported"),
)
COMMAND_ERRORS = counter("boxlite_worker_command_errors", "Commands that could not be started.")
COMMAND_SECONDS = histograms(
    "boxlite_worker_command_duration_seconds",
    "How long commands ran, by how they ended.",
    "status",
    buckets=LONG,
    known=("completed", "killed", "timed_out"),
)
INPUT_BYTES = counter("boxlite_worker_command_input_bytes", "Input that commands were given.")
OUTPUT_BYTES = counter("boxlite_worker_command_output_bytes", "Output that commands have written.")

ENGINE_ERRORS = counters(
    "boxlite_worker_engine_errors",
    "Failures of the container engine: it does not answer, it fails at what it is asked (also to start a command that "
    "cannot be executed), its disk is full.",
    "kind",
    known=("unreachable", "failed", "disk_full"),
)
