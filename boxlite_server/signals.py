"""Signals that a process inherited as ignored."""

from __future__ import annotations

import signal

_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def keep_from_children() -> None:
    """Start programs with the default actions of signals even where this process inherited them as ignored.

    nohup, jobs in a shell's background and many CI systems ignore SIGHUP or SIGINT. What is ignored stays so in
    every program that is started, which then cannot be ended by that signal. This process goes on ignoring it, by a
    handler that does nothing: programs do not inherit handlers. To be called in the main thread.
    """
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
