"""Threads that are used again for the next function."""

from __future__ import annotations

import threading

from boxlite_server.worker.executions.threads import Threads


def test_functions_run_side_by_side_however_many_there_are() -> None:
    threads, together, done = Threads(), threading.Barrier(101), threading.Semaphore(0)

    def meet() -> None:
        together.wait(60)
        done.release()

    for number in range(100):
        threads.run(f"meeting {number}", meet)
    together.wait(60)
    assert all(done.acquire(timeout=60) for _ in range(100))


def test_a_thread_is_used_again_under_another_name_also_after_a_failure() -> None:
    threads, seen = Threads(), list[tuple[threading.Thread, str]]()

    def look(fails: bool = False) -> None:
        seen.append((threading.current_thread(), threading.current_thread().name))
        if fails:
            raise ValueError

    threads.run("first", lambda: look(fails=True))
    while not threads._idle:
        pass
    threads.run("second", look)
    while not threads._idle:
        pass
    assert [name for _, name in seen] == ["first", "second"]
    assert seen[0][0] is seen[1][0]
