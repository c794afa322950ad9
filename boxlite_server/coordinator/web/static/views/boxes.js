// The list of boxes.

import { act, button, confirm, fill, h, put, tell } from "../dom.js";
import { age, mib, time } from "../format.js";
import { Rows } from "../rows.js";
import { openCreate } from "./create.js";

const COLUMNS = [["name", "Name"], ["status", "Status"], ["image", "Image"], ["cpus", "CPUs"], ["memory_mib", "Memory"], ["worker", "Worker"], ["created_at", "Age"]];
const STATUSES = ["running", "stopped", "configured", "paused", "stopping", "failed", "unknown"];
const MANY = 1000; // boxes, whose list is read again less often

export async function show(page) {
  const list = new List(page);
  await new Promise((resolve, reject) => list.read(resolve).then(resolve, reject));
  page.setTitle("Boxes");
  page.onShown = () => list.draw();
  return list.element;
}

class List {
  constructor(page) {
    this.page = page;
    this.boxes = new Map();
    this.order = ["created_at", -1];
    this.columns = COLUMNS.filter(([name]) => name !== "worker" || page.may("worker:admin"));
    this.count = h("span", { class: "muted", role: "status" });
    this.text = h("input", { type: "search", placeholder: "Filter by name, id, image, label …", "aria-label": "Filter", on: { input: () => this.draw() } });
    this.status = h("select", { "aria-label": "Status", on: { change: () => this.draw() } }, h("option", { value: "" }, "Any status"), STATUSES.map((status) => h("option", {}, status)));
    this.rows = new Rows({ scroller: page.main, caption: "Boxes", head: this.head(), key: (box) => box.box_id, render: (box) => this.cells(box), signal: page.signal });
    this.nothing = h("div", { class: "empty" });
    this.refused = h("div", { role: "status" });
    this.element = h("div", { class: "view" },
      h("div", { class: "bar" }, h("h1", {}, "Boxes"), this.count, h("span", { class: "grow" }),
        this.text, this.status,
        page.may("box:write") && button("New box", () => openCreate(page, (box) => this.take(box)), { class: "primary" })),
      this.refused, this.rows.element, this.nothing);
    page.follow((event) => event.kind.startsWith("box."), (events) => this.refresh(events), 4);
  }

  head() {
    const cells = this.columns.map(([name, text]) => {
      const cell = h("th", { scope: "col", class: `c-${name}` }, button(text, () => this.sort(name)));
      cell.dataset.column = name;
      return cell;
    });
    this.heads = cells;
    return [...cells, h("th", { scope: "col", class: "c-actions" }, h("span", { class: "hidden" }, "Actions"))];
  }

  sort(name) {
    this.order = [name, this.order[0] === name ? -this.order[1] : 1];
    this.draw();
  }

  /** Read all boxes, page by page; what has come is shown at once. `onFirst` is called after the first page. */
  async read(onFirst = () => {}) {
    const seen = new Set();
    for await (const boxes of this.page.api.pages("boxes", "boxes", {}, this.page.signal)) {
      for (const box of boxes) seen.add(this.put(box));
      onFirst();
      if (this.element.isConnected) this.draw();
    }
    for (const id of this.boxes.keys()) if (!seen.has(id)) this.boxes.delete(id);
    this.readAt = Date.now();
    this.draw();
  }

  /** Keep what is known already where nothing has changed, so that its row is left alone. */
  put(box) {
    const known = this.boxes.get(box.box_id);
    if (!known || !same(known, box)) this.boxes.set(box.box_id, box);
    return box.box_id;
  }

  take(box) {
    this.put(box);
    this.draw();
  }

  async refresh(events) {
    for (const event of events) {
      if (event.kind === "box.removed") this.boxes.delete(event.box_id);
      if (event.kind === "box.not_placed") this.unplaced(event);
    }
    const ids = new Set(events.filter((event) => event.box_id && event.kind !== "box.removed").map((event) => event.box_id));
    if (!events.length && this.boxes.size > MANY && Date.now() - this.readAt < 30000) return;
    if (!events.length || ids.size > 20) return this.read();
    await Promise.all([...ids].map((id) => this.update(id)));
    this.draw();
  }

  /** Say why no worker takes a box that somebody asked for. */
  unplaced({ name, time: at, details }) {
    fill(this.refused, h("div", { class: "problem" }, h("strong", {}, name ? `${name} was not placed` : "A box was not placed"), " at ", new Date(at).toLocaleTimeString(), ": ", details?.error_message || "no worker takes it", " ",
      button("Close", () => fill(this.refused), { class: "quiet" })));
  }

  async update(id) {
    try {
      this.put(await this.page.api.get(`boxes/${id}`, null, this.page.signal));
    } catch (error) {
      if (error.status !== 404) throw error;
      this.boxes.delete(id);
    }
  }

  draw() {
    const wanted = this.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const status = this.status.value;
    const [column, direction] = this.order;
    const found = [...this.boxes.values()].filter((box) => (!status || box.status === status) && wanted.every((word) => text(box).includes(word)));
    found.sort((one, two) => direction * compare(one[column], two[column]) || compare(one.box_id, two.box_id));
    for (const cell of this.heads) {
      if (cell.dataset.column === column) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
    const total = this.boxes.size.toLocaleString();
    put(this.count, found.length === this.boxes.size ? total : `${found.length.toLocaleString()} of ${total}`);
    this.rows.element.hidden = !found.length;
    this.rows.items = found;
    if (found.length) fill(this.nothing);
    else if (this.boxes.size) fill(this.nothing, h("p", {}, "No box matches the filter."));
    else fill(this.nothing, h("p", {}, "There are no boxes yet."), h("p", { class: "muted" }, "A box is a container in which commands run. Make one here, or with ", h("code", {}, "boxlite create alpine:latest"), "."));
  }

  cells(box) {
    const address = `#/boxes/${box.box_id}`;
    const cells = {
      name: () => [h("a", { href: address, data: { name: "link" } }, box.name || box.box_id), box.name && h("small", { class: "muted id" }, box.box_id)],
      status: () => [badge(box.status), box.error_message && h("small", { class: "why", title: box.error_message }, box.error_message)],
      image: () => h("span", { title: box.image }, box.image),
      cpus: () => String(box.cpus),
      memory_mib: () => mib(box.memory_mib),
      worker: () => box.worker || "",
      created_at: () => h("time", { datetime: box.created_at, title: time(box.created_at), data: { age: "" } }, age(box.created_at)),
    };
    return [...this.columns.map(([name]) => h("td", { class: `c-${name}` }, cells[name]())), h("td", { class: "c-actions" }, this.actions(box))];
  }

  actions(box) {
    const { page } = this;
    const label = box.name || box.box_id;
    const isUp = ["running", "paused"].includes(box.status);
    const change = (name, text, action, more) => button(text, (event) => act(event.currentTarget, action), { "aria-label": `${text} ${label}`, data: { name }, class: "quiet", ...more });
    return [
      page.may("box:exec") && isUp && h("a", { class: "button quiet", href: `#/boxes/${box.box_id}/terminal`, "aria-label": `Terminal of ${label}`, data: { name: "terminal" } }, "Terminal"),
      page.may("box:write") && (isUp
        ? change("power", "Stop", async () => this.take(await page.api.post(`boxes/${box.box_id}/stop`)))
        : change("power", "Start", async () => this.take(await page.api.post(`boxes/${box.box_id}/start`)))),
      page.may("box:delete") && change("remove", "Remove", async () => (await removeBox(page, box)) && (this.boxes.delete(box.box_id), this.draw())),
    ];
  }
}

/** Ask, and remove a box. Resolves to whether it is gone. */
export async function removeBox(page, box) {
  const label = box.name || box.box_id;
  if (!(await confirm(`Remove ${label}?`, "Its disk and its snapshots go with it. Volumes stay.", "Remove"))) return false;
  const answer = await page.api.remove(`boxes/${box.box_id}`, { force: true });
  tell(answer?.message || `${label} is removed.`);
  return true;
}

export const badge = (status) => h("span", { class: "badge", data: { status } }, status);

const text = (box) => (box._text ||= [box.name, box.box_id, box.image, box.status, box.worker, box.error_message, ...Object.entries(box.labels || {}).map((pair) => pair.join("="))].join(" ").toLowerCase());

function compare(one, two) {
  if (one === two) return 0;
  if (one === null || one === undefined) return 1;
  if (two === null || two === undefined) return -1;
  return one < two ? -1 : 1;
}

const same = (one, two) => JSON.stringify({ ...one, _text: 0 }) === JSON.stringify({ ...two, _text: 0 });
