"""What the flags of `boxlite-server` take."""

from __future__ import annotations

import argparse
import os

import pytest

from boxlite_server.cli import types


def test_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_NPROCESSORS_CONF": 8}[name])
    assert types.cpus("0") == (0,)
    assert types.cpus("5,0-2,1") == (0, 1, 2, 5)


@pytest.mark.parametrize("text", ["", "x", "1,", "-1", "3-1", "1-", "0-99999", "0--1", "99999999999999999999"])
def test_what_names_no_cpus_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="does not name cpus of this machine"):
        types.cpus(text)
