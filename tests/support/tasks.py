"""The other tasks of a test's event loop: wait for them all, or break them off."""

from __future__ import annotations

import asyncio


async def settle() -> None:
    """Wait until whatever was begun has ended, and whatever that began."""
    while others := _others():
        await asyncio.wait(others)


async def break_off() -> None:
    """Cancel all other tasks, and wait for their end."""
    others = _others()
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
