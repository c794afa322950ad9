// The workers of the fleet.

import { act, button, confirm, fill, h, put, table } from "../dom.js";
import { age, mib, time } from "../format.js";
import { badge } from "./boxes.js";

export async function show(page) {
  const { api } = page;
  const body = h("div", {}), count = h("span", { class: "muted" });

  async function read() {
    const { workers } = await api.get("admin/workers", null, page.signal);
    put(count, String(workers.length));
    const focused = document.activeElement?.dataset.name;
    fill(body, table("Workers", ["Worker", "State", "Boxes", "CPUs", "Memory", "Last beat", "Epoch", "Version", ""], workers.map(row), "No worker has registered yet."));
    if (focused) body.querySelector(`[data-name="${focused}"]`)?.focus();
  }

  function row(worker) {
    const { capacity, reserved } = worker;
    const drain = async (status, question) => {
      if (question && !(await confirm(question, "It gets no new boxes; those that are there go on.", "Drain"))) return;
      await api.patch(`admin/workers/${worker.id}/status`, { status });
      await read();
    };
    return [
      [h("strong", {}, worker.name), h("small", { class: "muted id" }, worker.id)],
      [badge(worker.status), worker.draining && worker.status !== "draining" && badge("draining"), worker.reason && h("small", { class: "why", title: worker.reason }, worker.reason)],
      load(reserved.boxes, capacity.max_boxes, `${worker.running_boxes} running`),
      load(reserved.cpus, capacity.cpus),
      load(reserved.memory_mib, capacity.memory_mib, null, mib),
      h("time", { datetime: worker.last_heartbeat, title: time(worker.last_heartbeat), data: { age: "" } }, age(worker.last_heartbeat)),
      h("code", { title: worker.epoch }, worker.epoch?.slice(0, 8) || ""),
      [worker.version, worker.engine_version && h("small", { class: "muted" }, `engine ${worker.engine_version}`)],
      worker.draining
        ? button("Undrain", (event) => act(event.currentTarget, () => drain("active")), { class: "quiet", "aria-label": `Undrain ${worker.name}`, data: { name: worker.id } })
        : button("Drain", (event) => act(event.currentTarget, () => drain("draining", `Drain ${worker.name}?`)), { class: "quiet", "aria-label": `Drain ${worker.name}`, data: { name: worker.id } }),
    ];
  }

  await read();
  page.follow((event) => event.kind.startsWith("worker."), read, 3);
  page.every(6, read); // heartbeats and loads are no events
  page.setTitle("Workers");
  return h("div", { class: "view" }, h("div", { class: "bar" }, h("h1", {}, "Workers"), count), body);
}

/** How much of something is reserved, as a bar and in numbers. */
function load(used, most, more, format = String) {
  const share = most ? Math.min(100, (100 * used) / most) : 0;
  return h("div", { class: "load" },
    h("span", {}, format(used) || "0", most ? ` / ${format(most)}` : ""),
    h("span", { "aria-hidden": "true", class: share > 85 ? "meter high" : "meter" }, h("i", { style: { width: `${share}%` } })),
    more && h("small", { class: "muted" }, more));
}
