"""The tables of what each prefix may have at most, of what it has, and of the images that it has pulled."""

from __future__ import annotations

from typing import NamedTuple

from .table import Table, marks, to_row

ANY_PREFIX = "*"  # stands in `quotas` for every prefix; no prefix has this name


class Quotas(NamedTuple):
    """What a prefix may have at most. None: what every prefix may have, and no limit where that is None too."""

    boxes: int | None = None
    running_boxes: int | None = None
    cpus: int | None = None  # reserved, by all boxes
    memory_mib: int | None = None  # reserved, by all boxes
    volumes: int | None = None
    executions: int | None = None  # under way on each worker
    transfers: int | None = None  # under way at each worker
    spooled_bytes: int | None = None  # of transfers on each worker's disk, and as many of the output of commands
    requests_per_second: int | None = None  # at each coordinator

    def over(self, other: Quotas) -> Quotas:
        """These quotas, with those of `other` where there is none."""
        return Quotas(*(theirs if own is None else own for own, theirs in zip(self, other, strict=True)))


class Use(NamedTuple):
    """What a prefix has of that which its quotas bound in the whole fleet; the fields have the names of `Quotas`."""

    boxes: int = 0  # but those that are being removed
    running_boxes: int = 0  # which run or are about to
    cpus: int = 0
    memory_mib: int = 0
    volumes: int = 0


class Pulled(NamedTuple):
    """What prefixes have pulled from a repository."""

    holders: frozenset[str]  # the prefixes that have not removed it
    is_private: bool  # its registry got credentials of a host


_COLUMNS = ", ".join(Quotas._fields)


class Tenants(Table):
    """Methods over the tables `quotas`, `pulls` and `private_pulls`, and over what triggers of the schema count in
    `totals`."""

    async def quotas_of(self, prefix: str) -> Quotas:
        """What holds for a prefix: its own quotas, and those of every prefix where it has none."""
        rows = await self._read(
            f"SELECT {_COLUMNS} FROM quotas WHERE prefix IN (?, ?) ORDER BY prefix = ? DESC",
            (prefix, ANY_PREFIX, prefix),
        )
        quotas = Quotas()
        for row in rows:
            quotas = quotas.over(Quotas(*row))
        return quotas

    async def own_quotas(self, prefix: str) -> Quotas | None:
        """The quotas that were set for a prefix; None: none were."""
        row = await self._read_one(f"SELECT {_COLUMNS} FROM quotas WHERE prefix = ?", (prefix,))
        return Quotas(*row) if row else None

    async def list_quotas(self) -> dict[str, Quotas]:
        """All quotas that were set, by prefix."""
        rows = await self._read(f"SELECT prefix, {_COLUMNS} FROM quotas ORDER BY prefix")
        return {row[0]: Quotas(*row[1:]) for row in rows}

    async def put_quotas(self, prefix: str, quotas: Quotas) -> None:
        """Set all quotas of a prefix."""
        updates = ", ".join(f"{column} = excluded.{column}" for column in Quotas._fields)
        await self._write(
            f"INSERT INTO quotas (prefix, {_COLUMNS}) VALUES (?, {marks(Quotas._fields)}) "
            f"ON CONFLICT (prefix) DO UPDATE SET {updates}",
            (prefix, *to_row(quotas._asdict())),
        )

    async def delete_quotas(self, prefix: str) -> None:
        await self._write("DELETE FROM quotas WHERE prefix = ?", (prefix,))

    async def use_of(self, prefix: str) -> Use:
        """What a prefix has now."""
        row = await self._read_one("SELECT boxes, active, cpus, memory_mib FROM totals WHERE prefix = ?", (prefix,))
        volumes = await self._read_one("SELECT count(*) FROM volumes WHERE prefix = ?", (prefix,))
        return Use(*(row or (0, 0, 0, 0)), *(volumes or (0,)))

    async def note_pull(self, repository: str, prefix: str, *, is_private: bool) -> None:
        """Note that a prefix has pulled an image from a repository."""
        await self._write(
            "INSERT INTO pulls (repository, prefix, private, held) VALUES (?, ?, ?, 1) "
            "ON CONFLICT (repository, prefix) DO UPDATE SET private = excluded.private, held = 1",
            (repository, prefix, int(is_private)),
        )
        if is_private:  # so nothing hangs on earlier pulls whose end nobody has seen
            await self._write("DELETE FROM private_pulls WHERE repository = ? AND prefix = ?", (repository, prefix))

    async def begin_private_pull(self, pull_id: str, repository: str, prefix: str) -> None:
        """Note that a prefix is about to pull from a repository whose registry gets credentials of a host: what is
        there of it is private from now on, and nobody's but those who pulled before."""
        await self._insert("private_pulls", {"id": pull_id, "repository": repository, "prefix": prefix})

    async def end_private_pull(self, pull_id: str) -> None:
        """Forget a pull that has brought nothing, or that `note_pull` has noted."""
        await self._write("DELETE FROM private_pulls WHERE id = ?", (pull_id,))

    async def drop_pull(self, repository: str, prefix: str) -> None:
        """Note that a prefix has removed its images of a repository."""
        await self._write("UPDATE pulls SET held = 0 WHERE repository = ? AND prefix = ?", (repository, prefix))

    async def pulled(self, repository: str | None = None) -> dict[str, Pulled]:
        """What was pulled or is being pulled, by repository, or from the one given. A repository from which no prefix
        ever pulled is missing."""
        condition, parameters = ("", ()) if repository is None else (" WHERE repository = ?", (repository,))
        rows = await self._read(
            f"SELECT repository, prefix, private, held FROM pulls{condition} "
            f"UNION ALL SELECT repository, prefix, 1, 0 FROM private_pulls{condition}",
            (*parameters, *parameters),
        )
        found: dict[str, Pulled] = {}
        for name, prefix, private, held in rows:
            before = found.get(name, Pulled(frozenset(), False))
            found[name] = Pulled(before.holders | ({prefix} if held else set()), before.is_private or bool(private))
        return found
