"""What the tests of the coordinator share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.fake_fleet import FakeFleet

Story = Callable[[FakeFleet], Coroutine[Any, Any, None]]


@pytest.fixture
def tell(tmp_path: Path) -> Callable[[Story], None]:
    """Runs a story about a coordinator of its own, whose workers answer as the story says."""

    def tell(story: Story) -> None:
        async def run() -> None:
            fleet = await FakeFleet(tmp_path / "c.db").open()
            try:
                await story(fleet)
            finally:
                await fleet.core.close()

        asyncio.run(run())

    return tell
