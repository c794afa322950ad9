"""Nobody vouches for a worker but itself, with its secret."""

from __future__ import annotations

from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite
from support.fake_worker import SECRET, epoch, id_of

from boxlite_server import errors, signatures
from boxlite_server.coordinator.http.handlers import workers


def signed(name: str, number: int, *, secret: str = SECRET, **fields: Any) -> dict[str, Any]:
    """The fields of a heartbeat of a worker, with its number and signature."""
    fields = {**fields, "number": number}
    beat = {"epoch": epoch(1), **fields}
    return {**fields, "signature": signatures.of_heartbeat(secret, id_of(name), beat)}


async def status(site: CoordinatorSite, name: str) -> str:
    return str((await workers.get_worker(site.core, id_of(name)))["status"])


def test_a_heartbeat_that_the_worker_has_not_signed_changes_nothing(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one", heartbeats=0)
        box = await site.create()
        attacks = [
            {},
            {"leaving": True},
            {"boxes": [], "inventory": "x"},
            {"engine_error": "it is gone"},
            {"number": 7, "signature": ""},
            {"number": 7, "signature": "0" * 64, "leaving": True},
            {"number": 7, "signature": "\xe9" * 64},
            signed("one", 7, secret="another secret", leaving=True),
            signed("two", 7, leaving=True),  # which another worker with the same secret has signed
            {**signed("one", 7), "leaving": True},  # changed on the way
            {**signed("one", 7), "number": 8},
            {"signature": signed("one", 7)["signature"]},
        ]
        for attack in attacks:
            with pytest.raises(errors.PermissionDeniedError, match="not signed"):
                await site.beat("one", **attack)
        assert await status(site, "one") == "active"
        assert (await site.core.store.get_box(box.id)) is not None
        await site.beat("one", **signed("one", 1, leaving=True))
        assert await status(site, "one") == "unreachable"

    tell(story)


def test_a_heartbeat_counts_once(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one", heartbeats=3)
        beat = signed("one", 4, engine_error="down for a moment")
        await site.beat("one", **beat)
        await site.beat("one", **signed("one", 5))
        for number in (3, 4, 5):
            with pytest.raises(errors.InvalidStateError, match="later heartbeat"):
                await site.beat("one", **(beat if number == 4 else signed("one", number)))
        await site.reopen()  # another coordinator knows it too
        with pytest.raises(errors.InvalidStateError, match="later heartbeat"):
            await site.beat("one", **beat)
        assert await status(site, "one") == "active"

    tell(story)


def test_workers_of_an_earlier_version_are_heard_until_they_are_upgraded(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        await site.beat("one")
        await site.register("one", 2, heartbeats=0)
        with pytest.raises(errors.PermissionDeniedError, match="not signed"):
            await site.beat("one", 2)

    tell(story)


@pytest.mark.parametrize("again", [False, True])
def test_the_id_of_a_removed_worker_is_not_to_be_had(tell: Any, again: bool) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one", heartbeats=0)
        await workers.remove_worker(site.core, id_of("one"))
        if again:
            await site.register("one", heartbeats=0)
            await workers.remove_worker(site.core, id_of("one"))
        for fields in ({}, {"epoch": epoch(2)}, {"url": "http://127.0.0.1:2"}):
            with pytest.raises(errors.PermissionDeniedError, match="a removed worker, which has another secret"):
                await site.register("one", secret="t" * 16, **fields)
        with pytest.raises(errors.NotFoundError):
            await workers.get_worker(site.core, id_of("one"))
        await site.register("one")  # the worker itself

    tell(story)


def test_the_coordinator_proves_that_it_knows_a_worker(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        question = {"worker_id": id_of("one"), "nonce": "n" * 16}
        with pytest.raises(errors.NotFoundError):
            await workers.prove_coordinator(site.core, question)
        await site.register("one")
        expected = {"proof": signatures.of_coordinator(SECRET, id_of("one"), "n" * 16)}
        assert await workers.prove_coordinator(site.core, question) == expected
        await workers.remove_worker(site.core, id_of("one"))
        assert await workers.prove_coordinator(site.core, question) == expected

    tell(story)
