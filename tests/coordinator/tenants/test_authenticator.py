"""Credentials: which open what, until when, and what becomes of wrong ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.clock import Clock
from support.keys import new_key
from support.rows import open_store

from boxlite_server import errors
from boxlite_server.coordinator.store import Store
from boxlite_server.coordinator.tenants import keys, scopes, tokens
from boxlite_server.coordinator.tenants.attempts import Attempts
from boxlite_server.coordinator.tenants.authenticator import Authenticator
from boxlite_server.coordinator.tenants.principal import Principal

pytestmark = pytest.mark.anyio

SINGLE = "the-one-key-of-a-small-installation"


class Site:
    """Coordinators on one database, as far as their authentication goes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = Clock()
        self.rows = self.new_rows()
        self.single = self.authenticator(SINGLE)
        self.auth = self.authenticator(None)

    def new_rows(self) -> keys.Keys:
        return keys.Keys(self.store, self.clock, self.clock)

    def authenticator(self, api_key: str | None, rows: keys.Keys | None = None) -> Authenticator:
        async def no_time(_: float) -> None: ...

        return Authenticator(self.store, rows or self.rows, api_key, self.clock, Attempts(self.clock, no_time))

    async def enter(self, credential: str, auth: Authenticator | None = None) -> Principal:
        return await (auth or self.auth).authenticate(f"Bearer {credential}", "192.0.2.1")

    async def refused(self, credential: str, match: str = ".", auth: Authenticator | None = None) -> None:
        with pytest.raises(errors.AuthError, match=match):
            await self.enter(credential, auth)

    def later(self, seconds: float) -> None:
        self.clock.now += seconds


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_store(tmp_path / "c.db") as store:
        yield Site(store)


async def test_without_any_key_everybody_is_let_in(site: Site) -> None:
    for header in (None, "", "Bearer whatever"):
        assert (await site.auth.authenticate(header, "")).sub == "anonymous"
    assert (await site.auth.issue_token("whatever", "")).access_token


async def test_the_first_key_closes_the_door_behind_it_for_good(site: Site) -> None:
    await site.enter("whatever")
    key, text = await new_key(site.store)
    site.later(keys.FRESH_SECONDS)
    await site.refused("whatever")
    assert (await site.enter(text)).sub == key.id
    await site.store.revoke_key(key.id, site.clock.now)
    restarted = site.authenticator(None, site.new_rows())
    await site.refused("whatever", auth=restarted)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic " + SINGLE, "Bearer " + SINGLE[:-1], "Bearer é", "Bearer \ud800"]
)
async def test_nothing_but_the_one_key_opens(site: Site, header: str | None) -> None:
    with pytest.raises(errors.AuthError):
        await site.single.authenticate(header, "")


async def test_the_one_key_opens_every_prefix(site: Site) -> None:
    principal = await site.single.authenticate(f"bearer {SINGLE}", "")
    assert (principal.sub, principal.own_prefix, principal.is_confined) == ("api-key", "default", False)
    assert principal.scopes == {*scopes.CLIENT, scopes.WORKER}


async def test_the_one_key_registers_no_workers_once_workers_have_a_key(site: Site) -> None:
    await site.enter(SINGLE, site.single)
    key, _ = await new_key(site.store, prefix="", scopes=(scopes.WORKER,))
    await site.store.revoke_key(key.id, site.clock.now)
    site.later(keys.FRESH_SECONDS)
    assert (await site.enter(SINGLE, site.single)).scopes == set(scopes.CLIENT)


async def test_a_key_opens_its_own_prefix_with_its_own_scopes(site: Site) -> None:
    key, text = await new_key(site.store, prefix="acme", scopes=("box:read",), expires_at=site.clock.now + 60)
    principal = await site.enter(text)
    assert principal == Principal(key.id, frozenset({"box:read"}), "acme", True, key.expires_at, key.secret_sha256)
    assert await site.enter(text, site.single) == principal  # beside the one key, too


async def test_a_key_with_another_secret_or_another_id_does_not_open(site: Site) -> None:
    key, text = await new_key(site.store)
    _, other = await new_key(site.store)
    await site.refused(text[:-1])
    await site.refused(text + "x")
    await site.refused(other[:17] + text[17:])
    await site.refused(text.replace(key.id, "0" * 12))
    await site.refused(key.secret_sha256)
    await site.refused(f"blx_{key.id}_{key.secret_sha256}")


async def test_the_database_has_no_secret(site: Site) -> None:
    key, text = await new_key(site.store)
    assert text.split("_", 2)[2] not in repr(await site.store.get_key(key.id))


async def test_a_key_ends_when_it_expires(site: Site) -> None:
    _, text = await new_key(site.store, expires_at=site.clock.now + 60)
    site.later(59)
    await site.enter(text)
    site.later(1)
    await site.refused(text, "expired")


async def test_a_revocation_reaches_every_coordinator_within_ten_seconds(site: Site) -> None:
    key, text = await new_key(site.store)
    other = site.authenticator(None, site.new_rows())
    await site.enter(text)
    site.later(3)
    await site.enter(text, other)
    await site.store.revoke_key(key.id, site.clock.now)
    site.later(10)
    await site.refused(text, "revoked")
    await site.refused(text, "revoked", other)


async def test_a_rotated_key_ends_with_its_grace(site: Site) -> None:
    key, text = await new_key(site.store)
    fresh = keys.mint(key.id)
    await site.store.rotate_key(key.id, fresh.secret_sha256, site.clock.now + 100)
    assert (await site.enter(text)).sub == (await site.enter(fresh.text)).sub == key.id
    site.later(100)
    await site.refused(text)
    await site.enter(fresh.text)


@pytest.mark.parametrize("end", ["revoked", "rotated", "expired"])
async def test_whoever_is_connected_hears_of_the_end_of_its_key(site: Site, end: str) -> None:
    key, text = await new_key(site.store, expires_at=site.clock.now + 20 if end == "expired" else None)
    _, other = await new_key(site.store)
    heard: list[str] = []
    principal, bystander = await site.enter(text), await site.enter(other)
    with (
        site.rows.watched(principal.sub, principal.secret_sha256, lambda: heard.append("one")),
        site.rows.watched(principal.sub, principal.secret_sha256, lambda: heard.append("two")),
        site.rows.watched(bystander.sub, bystander.secret_sha256, lambda: heard.append("bystander")),
    ):
        with site.rows.watched(principal.sub, principal.secret_sha256, lambda: heard.append("gone")):
            await site.rows._look()
        if end == "revoked":
            await site.store.revoke_key(key.id, site.clock.now)
        elif end == "rotated":
            await site.store.rotate_key(key.id, "0" * 64, site.clock.now)
        site.later(20)
        await site.rows._look()
        await site.rows._look()
        assert sorted(heard) == ["one", "two"]
    assert not site.rows._watched


async def test_a_rotated_key_works_at_once(site: Site) -> None:
    key, text = await new_key(site.store)
    await site.enter(text)
    fresh = keys.mint(key.id)
    await site.store.rotate_key(key.id, fresh.secret_sha256, site.clock.now)
    await site.enter(fresh.text)
    await site.refused(text)


async def test_a_known_key_is_read_once_in_five_seconds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = await new_key(site.store)
    await site.enter(text)
    site.later(keys.FRESH_SECONDS)
    reads = []
    get_key = site.store.get_key

    async def counted(key_id: str) -> Any:
        reads.append(key_id)
        return await get_key(key_id)

    monkeypatch.setattr(site.store, "get_key", counted)
    await asyncio.gather(*(site.enter(text) for _ in range(50)))
    site.later(keys.FRESH_SECONDS - 0.1)
    await site.enter(text)
    assert reads == [key.id]


async def test_a_database_that_is_away_lets_nobody_in(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = await new_key(site.store)
    await site.enter(text)

    async def away(_: str) -> Any:
        raise errors.DatabaseUnavailableError("away")

    monkeypatch.setattr(site.store, "get_key", away)
    site.later(keys.FRESH_SECONDS)
    with pytest.raises(errors.DatabaseUnavailableError):
        await site.enter(text)


async def test_the_last_use_is_written_later_and_once(site: Site) -> None:
    key, text = await new_key(site.store)
    for _ in range(3):
        site.later(1)
        await site.enter(text)
    assert (await site.store.list_keys())[0].last_used_at is None
    used_at = site.clock.now
    await site.rows.write_uses()
    assert (await site.store.list_keys())[0].last_used_at == used_at
    await site.store.note_key_use(key.id, used_at - 60)  # another coordinator writes late
    assert (await site.store.list_keys())[0].last_used_at == used_at


async def test_uses_that_cannot_be_written_are_written_later(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = await new_key(site.store)
    await site.enter(text)
    with monkeypatch.context() as patched:

        async def away(*_: object) -> None:
            raise errors.DatabaseUnavailableError("away")

        patched.setattr(site.store, "note_key_use", away)
        with pytest.raises(errors.DatabaseUnavailableError):
            await site.rows.write_uses()
        await site.rows.close()  # does not fail
    await site.rows.write_uses()
    assert (await site.store.list_keys())[0].last_used_at == site.clock.now
    assert key.last_used_at is None


# ---- tokens ----


async def test_a_token_opens_what_its_key_opens_until_it_expires(site: Site) -> None:
    _, text = await new_key(site.store, prefix="acme", scopes=("box:read", "box:exec"))
    for auth, secret in ((site.single, SINGLE), (site.auth, text)):
        grant = await auth.issue_token(secret, "")
        assert grant.seconds == tokens.TOKEN_SECONDS <= 900
        assert secret not in grant.access_token
        restarted = site.authenticator(SINGLE if auth is site.single else None, site.new_rows())
        assert await site.enter(grant.access_token, restarted) == await site.enter(secret, auth)
        assert grant.principal.scopes == (await site.enter(secret, auth)).scopes
        site.later(tokens.TOKEN_SECONDS + 2)
        await site.refused(grant.access_token, "token has expired", auth)


async def test_a_token_dies_with_its_key(site: Site) -> None:
    key, text = await new_key(site.store)
    token = (await site.auth.issue_token(text, "")).access_token
    await site.store.revoke_key(key.id, site.clock.now)
    site.later(keys.FRESH_SECONDS)
    await site.refused(token, "revoked")
    token = (await site.single.issue_token(SINGLE, "")).access_token
    await site.refused(token, auth=site.authenticator("another key of the small installation"))
    await site.refused(token, auth=site.auth)


async def test_a_token_dies_with_the_secret_that_it_was_made_from(site: Site) -> None:
    key, text = await new_key(site.store)
    token = (await site.auth.issue_token(text, "")).access_token
    fresh = keys.mint(key.id)
    await site.store.rotate_key(key.id, fresh.secret_sha256, site.clock.now + 60)
    site.later(keys.FRESH_SECONDS)
    await site.enter(token)
    site.later(60)
    await site.refused(token)


async def opened(site: Site, ticket: str, authorized: str = "/it?") -> Principal:
    return await site.auth.authenticate_ticket(ticket, lambda _: authorized, "192.0.2.1")


async def test_a_ticket_cannot_be_prolonged_nor_made_another_keys(site: Site) -> None:
    _, text = await new_key(site.store)
    other, _ = await new_key(site.store)
    ticket, _ = await site.auth.issue_ticket(await site.enter(text), "/it?", 60)
    _, key_id, expiry, signature = ticket.split("_")
    assert (await opened(site, ticket)).sub == key_id
    for forged in (f"bli_{key_id}_{int(expiry) + 1}_{signature}", f"bli_{other.id}_{expiry}_{signature}"):
        with pytest.raises(errors.AuthError, match="not valid for this request"):
            await opened(site, forged)


async def test_a_ticket_dies_with_the_secret_that_it_was_made_from(site: Site) -> None:
    key, text = await new_key(site.store)
    ticket, _ = await site.auth.issue_ticket(await site.enter(text), "/it?", 60)
    await site.store.rotate_key(key.id, keys.mint(key.id).secret_sha256, site.clock.now)
    site.later(keys.FRESH_SECONDS)
    with pytest.raises(errors.AuthError):
        await opened(site, ticket)


async def test_a_token_lasts_no_longer_than_its_key(site: Site) -> None:
    _, text = await new_key(site.store, expires_at=site.clock.now + 30)
    grant = await site.auth.issue_token(text, "")
    assert grant.seconds == 30
    site.later(30)
    await site.refused(grant.access_token)


async def test_a_token_cannot_be_prolonged_nor_made_another_keys(site: Site) -> None:
    _, text = await new_key(site.store)
    other, _ = await new_key(site.store)
    _, key_id, expiry, signature = (await site.auth.issue_token(text, "")).access_token.split("_")
    await site.enter(f"blt_{key_id}_{expiry}_{signature}")
    await site.refused(f"blt_{key_id}_{int(expiry) + 1}_{signature}")
    await site.refused(f"blt_{other.id}_{expiry}_{signature}")
    await site.refused(f"blt_api-key_{expiry}_{signature}")
    await site.refused(f"blt_api-key_{expiry}_{signature}", auth=site.single)


async def test_a_wrong_secret_gets_no_token(site: Site) -> None:
    _, text = await new_key(site.store)
    token = (await site.auth.issue_token(text, "")).access_token
    for secret in ("wrong", text[:-1], token):
        with pytest.raises(errors.AuthError):
            await site.auth.issue_token(secret, "")


# ---- wrong keys ----


async def test_wrong_keys_are_slowed_by_address_and_right_ones_never(site: Site) -> None:
    _, text = await new_key(site.store)
    held, is_over = [], asyncio.Event()

    async def hold(seconds: float) -> None:
        held.append(seconds)
        await is_over.wait()

    auth = Authenticator(site.store, site.rows, None, site.clock, Attempts(site.clock, hold))
    guesses = [asyncio.create_task(auth.authenticate("Bearer wrong", "192.0.2.1")) for _ in range(1000)]
    while sum(guess.done() for guess in guesses) < 984:  # noqa: ASYNC110  # 10 are free, 16 are held back
        await asyncio.sleep(0)
    assert (await auth.authenticate(f"Bearer {text}", "192.0.2.1")).own_prefix == "acme"
    with pytest.raises(errors.AuthError):
        await auth.authenticate("Bearer wrong", "192.0.2.2")
    is_over.set()
    outcomes = [type(error) for error in await asyncio.gather(*guesses, return_exceptions=True)]
    assert (len(held), outcomes.count(errors.AuthError)) == (16, 26)
    assert outcomes.count(errors.ResourceExhaustedError) == 974
    assert auth.refused["wrong"] == 1001


async def test_wrong_tickets_count_as_wrong_keys_of_their_address(site: Site) -> None:
    key, text = await new_key(site.store)
    right, _ = await site.auth.issue_ticket(await site.enter(text), "/it?", 60)
    held = []

    async def hold(seconds: float) -> None:
        held.append(seconds)

    auth = Authenticator(site.store, site.rows, None, site.clock, Attempts(site.clock, hold))
    for ticket, target in ((right, "/other?"), (right[:-64] + "0" * 64, "/it?"), ("nonsense", "/it?")) * 4:
        with pytest.raises(errors.AuthError):
            await auth.authenticate_ticket(ticket, lambda _, target=target: target, "192.0.2.1")  # type: ignore[misc]
    assert (auth.refused["wrong"], len(held)) == (12, 2)  # 10 are free
    assert (await auth.authenticate_ticket(right, lambda _: "/it?", "192.0.2.1")).sub == key.id
    assert len(held) == 2


async def test_an_address_is_forgiven_with_time(site: Site) -> None:
    held = []

    async def hold(seconds: float) -> None:
        held.append(seconds)

    attempts = Attempts(site.clock, hold)
    for _ in range(11):
        await attempts.failed("2001:db8::1")
    await attempts.failed("2001:db8::2")  # the same network
    assert len(held) == 2
    site.later(5)
    await attempts.failed("2001:db8::3")
    assert len(held) == 2


async def test_addresses_are_remembered_within_bounds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxlite_server.coordinator.tenants.attempts.MAX_ADDRESSES", 100)
    monkeypatch.setattr("boxlite_server.coordinator.tenants.keys.MAX_KNOWN", 10)
    attempts = Attempts(site.clock)
    for number in range(1000):
        await attempts.failed(f"10.0.{number // 256}.{number % 256}")
    assert len(attempts._addresses) == 100
    for _ in range(20):
        await site.enter((await new_key(site.store))[1])
    assert len(site.rows._known) == 10
