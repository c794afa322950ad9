"""A client that cannot stop reading, such as a browser, says how much output it takes ahead."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from support.attach import Attached, attached, refusal
from support.boxes import execute
from support.cluster import Cluster
from websockets.exceptions import ConnectionClosed

WINDOW = 64 * 1024
PIECE = 512 * 1024  # more than any message has


def confirm(client: Attached, count: int) -> None:
    with suppress(ConnectionClosed):  # the rest has come, and is still to be read
        client.say(type="received", bytes=count)


def test_output_waits_until_the_client_confirms_what_it_has(cluster: Cluster, new_box: Callable[..., str]) -> None:
    box = new_box()
    execution = execute(cluster, box, "yes | head -c 4000000; exit 3")
    path = f"{box}/executions/{execution}/attach?received=0&window={WINDOW}"
    with attached(cluster, path) as client:
        while client.received < WINDOW:
            client.step()
        held = client.received
        with pytest.raises(TimeoutError):
            client.connection.recv(timeout=0.5)
        assert held < WINDOW + PIECE
        while client.exit_code is None:
            confirm(client, client.received)
            client.step()
    assert client.stdout == b"y\n" * 2_000_000
    assert client.exit_code == 3
    assert not client.complaints


def test_a_client_that_comes_back_with_a_window_misses_nothing(cluster: Cluster, new_box: Callable[..., str]) -> None:
    box = new_box()
    path = f"{box}/executions/{execute(cluster, box, 'seq 200000')}/attach"
    with attached(cluster, f"{path}?received=0&window=1000") as first:
        while first.received < 1000:
            first.step()
    with attached(cluster, f"{path}?received={first.received}&window={WINDOW}") as second:
        while second.exit_code is None:
            confirm(second, first.received + second.received)
            second.step()
    assert first.stdout + second.stdout == b"".join(b"%d\n" % number for number in range(1, 200_001))


@pytest.mark.parametrize("window", ["0", "-1", "x", "1.5"])
def test_a_window_that_is_none_is_refused(cluster: Cluster, new_box: Callable[..., str], window: str) -> None:
    box = new_box()
    path = f"{box}/executions/{execute(cluster, box, 'true')}/attach?window={window}"
    status, error = refusal(cluster, path)
    assert (status, error["code"]) == (400, "invalid_argument")
    assert "window" in error["message"]
