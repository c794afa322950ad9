// A table of any length: only the rows that can be seen are in the document.

import { h } from "./dom.js";

const MARGIN = 12; // rows above and below the visible ones

export class Rows {
  /** `scroller`: the element that scrolls. `head`: the header cells. `key(item)`: its identity. `render(item)`: its
   * cells, as elements. */
  constructor({ scroller, caption, head, key, render, signal }) {
    this._scroller = scroller;
    this._key = key;
    this._render = render;
    this._rows = new Map(); // by key
    this._items = [];
    this._height = 0; // of a row, once one is there
    this._above = spacer();
    this._below = spacer();
    this._body = h("tbody", {}, this._above, this._below);
    this.element = h("table", { class: "rows" }, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", { "aria-rowindex": 1 }, head)), this._body);
    this._requested = 0;
    const draw = () => (this._requested ||= requestAnimationFrame(() => this.draw()));
    scroller.addEventListener("scroll", draw, { signal, passive: true });
    addEventListener("resize", () => { this._height = 0; draw(); }, { signal });
  }

  set items(items) {
    this._items = items;
    this.element.setAttribute("aria-rowcount", items.length + 1);
    this.draw();
  }

  draw() {
    this._requested = 0;
    if (!this._items.length) {
      for (const row of this._rows.values()) row.element.remove();
      this._rows.clear();
      stretch(this._above, 0);
      return stretch(this._below, 0);
    }
    if (!this._height) this._measure();
    const begin = this.element.getBoundingClientRect().top - this._scroller.getBoundingClientRect().top;
    const first = Math.min(this._items.length - 1, Math.max(0, Math.floor(-begin / this._height) - MARGIN));
    const last = Math.min(this._items.length, Math.ceil((this._scroller.clientHeight - begin) / this._height) + MARGIN);
    this._place(first, Math.max(last, first + 1));
  }

  _measure() {
    this._place(0, Math.min(2, this._items.length));
    this._height = this._above.nextElementSibling.getBoundingClientRect().height || 0;
    if (!this._height) this._height = 40; // nothing is laid out yet
  }

  _place(first, last) {
    const wanted = new Map();
    for (let index = first; index < last; index++) wanted.set(this._key(this._items[index]), index);
    for (const [key, row] of this._rows) {
      if (wanted.has(key)) continue;
      row.element.remove();
      this._rows.delete(key);
    }
    let before = this._above;
    for (const [key, index] of wanted) {
      const element = this._row(key, this._items[index]);
      element.setAttribute("aria-rowindex", index + 2);
      if (before.nextElementSibling !== element) before.after(element);
      before = element;
    }
    stretch(this._above, first * this._height);
    stretch(this._below, (this._items.length - last) * this._height);
  }

  _row(key, item) {
    const row = this._rows.get(key);
    if (row?.item === item) return row.element;
    const element = row?.element || h("tr");
    const focused = element.contains(document.activeElement) && document.activeElement.dataset.name;
    element.replaceChildren(...this._render(item));
    if (focused) element.querySelector(`[data-name="${focused}"]`)?.focus();
    this._rows.set(key, { item, element });
    return element;
  }
}

const spacer = () => h("tr", { class: "spacer", "aria-hidden": "true" }, h("td", { colspan: 20 }));

function stretch(row, height) {
  row.firstChild.style.setProperty("height", `${height}px`);
  row.hidden = height <= 0;
}
