// One box, in tabs.

import { act, button, fill, h, tell } from "../dom.js";
import { badge, removeBox } from "./boxes.js";
import { editBox } from "./edit.js";
import { cloneBox, overview } from "./overview.js";
import { files } from "./files.js";
import { logs } from "./logs.js";
import { snapshots } from "./snapshots.js";
import { terminal } from "./terminal.js";

const TABS = [
  ["overview", "Overview", "box:read", overview],
  ["terminal", "Terminal", "box:exec", terminal],
  ["logs", "Logs", "box:read", logs],
  ["files", "Files", "box:exec", files],
  ["snapshots", "Snapshots", "snapshot:read", snapshots],
];

export async function show(page) {
  const [id, name = "overview"] = page.params;
  const view = new BoxView(page, await page.api.get(`boxes/${encodeURIComponent(id)}`, null, page.signal));
  return view.open(name);
}

/** What the tabs share: the box as it was last read. */
class BoxView {
  constructor(page, box) {
    this.page = page;
    this.api = page.api;
    this.box = box;
    this.path = `boxes/${box.box_id}`;
    this.listeners = [];
    this.head = h("div", { class: "bar" });
    this.why = h("div", {});
    page.follow((event) => event.kind.startsWith("box.") && event.box_id === box.box_id, (events) => (events.some((event) => event.kind === "box.removed") ? this.gone() : this.read()), 2);
  }

  async open(name) {
    const tabs = TABS.filter(([, , scope]) => this.page.may(scope));
    const [, title, , show] = tabs.find(([tab]) => tab === name) || tabs[0];
    this.page.setTitle(`${this.label} · ${title}`);
    this.draw();
    const body = h("div", { class: "tab" });
    const element = h("div", { class: name === "terminal" ? "view full" : "view" }, this.head, this.why,
      h("nav", { class: "tabs", "aria-label": "Box" }, tabs.map(([tab, text]) => h("a", { href: `#/${this.path}/${tab}`, "aria-current": tab === name ? "page" : null }, text))),
      body);
    try {
      fill(body, await show(this));
    } catch (error) {
      if (error.name === "AbortError") throw error;
      fill(body, h("p", { class: "problem" }, error.message));
    }
    return element;
  }

  get label() { return this.box.name || this.box.box_id; }

  get isUp() { return ["running", "paused"].includes(this.box.status); }

  /** Call `listener` whenever the box has changed. */
  onChange(listener) { this.listeners.push(listener); }

  async read() {
    try {
      this.take(await this.api.get(this.path, null, this.page.signal));
    } catch (error) {
      if (error.status !== 404) throw error;
      this.gone();
    }
  }

  gone() {
    if (this.page.signal.aborted) return;
    tell(`${this.label} is gone.`);
    location.hash = "#/boxes";
  }

  take(box) {
    const changed = JSON.stringify(box) !== JSON.stringify(this.box);
    this.box = box;
    if (!changed) return;
    this.draw();
    for (const listener of this.listeners) listener();
  }

  draw() {
    const { page, box, path, api } = this;
    const focused = this.head.contains(document.activeElement) && document.activeElement.dataset.name;
    const change = (name, text, action, more) => button(text, (event) => act(event.currentTarget, action), { data: { name }, ...more });
    fill(this.head,
      h("h1", {}, this.label), badge(box.status), h("code", { class: "muted" }, box.box_id), h("span", { class: "grow" }),
      page.may("box:write") && (this.isUp
        ? change("power", "Stop", async () => this.take(await api.post(`${path}/stop`)))
        : change("power", "Start", async () => this.take(await api.post(`${path}/start`)))),
      page.may("box:write") && change("edit", "Change", async () => {
        await editBox(this);
        this.head.querySelector('[data-name="edit"]').focus(); // the button may be another one by now
      }),
      page.may("box:write") && change("clone", "Clone", () => cloneBox(this)),
      page.may("box:delete") && change("remove", "Remove", async () => (await removeBox(page, box)) && (location.hash = "#/boxes"), { class: "danger" }));
    if (focused) this.head.querySelector(`[data-name="${focused}"]`)?.focus();
    fill(this.why, box.error_message && h("p", { class: "problem" }, box.error_message));
  }
}
