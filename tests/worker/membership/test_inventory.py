"""Inventories of an engine that takes its time."""

from __future__ import annotations

import threading

import pytest
from support.sites import Site

from boxlite_server.errors import EngineError
from boxlite_server.worker.membership.inventory import Stocktaking


def test_an_engine_that_is_busy_with_a_box_is_not_taken_for_one_that_hangs(
    fake_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = fake_site.running_box()
    busy, list_boxes = threading.Event(), fake_site.runtime.list_boxes
    asked: list[str] = []

    def slow() -> object:
        asked.append("boxes")
        assert busy.wait(60)
        return list_boxes()

    monkeypatch.setattr(fake_site.runtime, "list_boxes", slow)
    stocktaking = Stocktaking(fake_site.runtime)
    assert stocktaking.take(0.01) is None
    assert stocktaking.take(0.01) is None
    assert asked == ["boxes"], "one question at a time"

    hangs, life = threading.Event(), fake_site.runtime.life

    def hang() -> str:
        assert hangs.wait(60)
        return life()

    monkeypatch.setattr(fake_site.runtime, "life", hang)
    with pytest.raises(EngineError, match="has not answered"):
        stocktaking.take(0.01)
    hangs.set()
    busy.set()
    held = stocktaking.take(60)
    assert held and [entry["box_id"] for entry in held.boxes] == [box.box_id]
    fake_site.runtime.remove(box, force=True)
