"""Administration of workers, and the operations that workers call themselves."""

from __future__ import annotations

from typing import Any

from .... import errors
from ...core import Core
from ...domain.warm import pool_of
from ...fleet.registry import HEARTBEAT_SECONDS
from ...states import WorkerStatus
from ...store import Load
from .. import views


async def register_worker(core: Core, body: dict[str, Any]) -> Any:
    worker = await core.fleet.register(body)
    await core.reconciler.report(worker.id, body.get("boxes") or [])
    core.reconciler.survey_soon(worker.id)
    await core.fleet.inventory_taken(worker, None)
    return {
        "id": worker.id,
        "name": worker.name,
        "cluster_id": await core.store.cluster_id(),
        "heartbeat_interval_seconds": HEARTBEAT_SECONDS,
    }


async def prove_coordinator(core: Core, body: dict[str, Any]) -> Any:
    return {"proof": await core.fleet.proof(body["worker_id"], body["nonce"])}


async def get_authorities(core: Core) -> Any:
    return {"certificates": core.certificates.authorities()}


async def issue_certificate(core: Core, worker_id: str, body: dict[str, Any]) -> Any:
    await core.fleet.check_request(worker_id, body["csr"], body["signature"])
    issued = await core.certificates.issue(worker_id, body["csr"])
    return {"certificate": issued.certificate, "authorities": issued.authorities}


async def heartbeat(core: Core, worker_id: str, body: dict[str, Any]) -> Any:
    worker = await core.fleet.heartbeat(worker_id, body)
    boxes, digest = body.get("boxes"), body.get("inventory")
    if boxes is not None:
        await core.reconciler.report(worker.id, boxes)
        await core.fleet.inventory_taken(worker, digest)
    return {
        "heartbeat_interval_seconds": HEARTBEAT_SECONDS,
        "send_inventory": boxes is None and core.fleet.lacks_inventory(worker, digest),
    }


async def list_workers(core: Core, page_size: int | None = None, page_token: str | None = None) -> Any:
    rows = await core.store.list_workers(after=views.after(page_token), limit=page_size and page_size + 1)
    page, token = views.page(rows, page_size, lambda row: (row.registered_at, row.id))
    loads = await core.store.loads()
    return {
        "workers": [views.worker(row, core, loads.get(row.id, Load())) for row in page],
        "next_page_token": token,
    }


async def get_worker(core: Core, worker_id: str) -> Any:
    return await views.worker_with_load(core, await core.fleet.get(worker_id))


async def remove_worker(core: Core, worker_id: str, force: bool = False) -> Any:
    removed = await core.fleet.remove(worker_id, force=force)
    if not removed.text:
        return None, 204
    return {"boxes": removed.boxes, "volumes": removed.volumes, "message": removed.text}


async def set_worker_status(core: Core, worker_id: str, body: dict[str, Any]) -> Any:
    worker = await core.fleet.set_status(worker_id, WorkerStatus(body["status"]))
    return await views.worker_with_load(core, worker)


async def get_worker_by_box(core: Core, box_id: str) -> Any:
    box = await core.store.get_box(box_id)
    if box is None:
        raise errors.NotFoundError(f"box not found: {box_id}")
    return await views.worker_with_load(core, await core.fleet.get(box.worker_id))


async def reconcile(core: Core, body: dict[str, Any]) -> Any:
    dry_run = body["dry_run"]
    return views.reconciled(
        await core.reconciler.run(dry_run=dry_run, worker=body.get("worker")), dry_run, core.clock()
    )


async def get_warm_pools(core: Core) -> Any:
    workers = {worker.id: worker.name for worker in await core.store.list_workers()}
    counted = await core.counting.totals()
    return {
        "pools": [
            {
                "image": wish.pool.image,
                "cpus": wish.pool.cpus,
                "memory_mib": wish.pool.memory_mib,
                "boxes": wish.pool.boxes,
                "ready": count,
                "worker": workers.get(wish.worker_id or ""),
            }
            for wish, count in await core.pools.ready()
        ],
        "claimed_total": counted.warm_claims,
        "missed_total": counted.warm_misses,
        "made_total": counted.warm_made,
        "given_up_total": counted.warm_given_up,
    }


async def set_warm_pools(core: Core, body: dict[str, Any]) -> Any:
    await core.pools.keep(
        [pool_of(pool["image"], pool["boxes"], pool.get("cpus"), pool.get("memory_mib")) for pool in body["pools"]]
    )
    return await get_warm_pools(core)
