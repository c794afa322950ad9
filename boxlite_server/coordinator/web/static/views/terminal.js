// The terminals of a box.

import { act, button, fill, h } from "../dom.js";
import { openTerminal, terminalsOf } from "../terminals.js";

export async function terminal(view) {
  const { api, box, page } = view;
  const place = h("div", { class: "terminal-place" });
  const bar = h("div", { class: "terminal-bar", role: "group", "aria-label": "Terminals" });
  const list = await terminalsOf(api, box.box_id);
  let shown = null;

  function show(one) {
    shown?.hide();
    shown = one;
    if (one) one.show(place);
    else fill(place, h("div", { class: "empty" }, h("p", {}, "No terminal is open."), view.isUp || box.auto_resume ? null : h("p", { class: "muted" }, "The box does not run, and does not start by itself.")));
    draw();
  }

  function draw() {
    fill(bar, list.map((one, index) => h("span", { class: one === shown ? "chip here" : "chip" },
      button(`Shell ${index + 1}`, () => show(one), { "aria-pressed": String(one === shown) }),
      button("×", (event) => act(event.currentTarget, () => close(one)), { "aria-label": `Close shell ${index + 1}`, title: "Kill its command and close it", class: "quiet" }))),
    button("New terminal", (event) => act(event.currentTarget, start), { class: "quiet" }));
  }

  async function start() {
    try {
      await openTerminal(api, box.box_id, show);
    } catch (error) {
      show(list[0] || null);
      throw error;
    }
    draw();
  }

  async function close(one) {
    await one.end();
    show(list[0] || null);
  }

  place.addEventListener("leave", () => bar.querySelector("button")?.focus());
  place.addEventListener("state", draw);
  page.signal.addEventListener("abort", () => shown?.hide());
  page.onShown = async () => {
    if (list.length) return show(list[list.length - 1]);
    show(null);
    const starter = bar.lastElementChild;
    if (view.isUp) await act(starter, start);
  };
  return [bar, place];
}
