// Terminals of boxes: xterm.js on an attached shell. They go on while other views are shown, and after a reload.

import { Attachment } from "./attachment.js";
import { button, fill, h, put } from "./dom.js";

// The shell that a box has.
const SHELL = { command: "sh", args: ["-c", "if command -v bash >/dev/null; then exec bash; else exec sh; fi"] };
const ENVIRONMENT = { TERM: "xterm-256color", COLORTERM: "truecolor" };
const RESIZE_MILLISECONDS = 100; // between two sizes that the server is told
const STORED = "boxlite.terminals"; // in sessionStorage: the terminals of this tab, for a reload
const THEME = {
  background: "#11181c", foreground: "#dfe7ea", cursor: "#7fd1c4", cursorAccent: "#11181c", selectionBackground: "#2f5660",
  black: "#1d272c", red: "#f2777a", green: "#8ccf8c", yellow: "#e8c16f", blue: "#7fb2e6", magenta: "#cf9de0", cyan: "#74cfc3", white: "#cfd8dc",
  brightBlack: "#71828b", brightRed: "#ff9b9d", brightGreen: "#a9e2a9", brightYellow: "#f5d894", brightBlue: "#a3cbf4", brightMagenta: "#e0b9ee", brightCyan: "#9be3da", brightWhite: "#ffffff",
};

const open = new Map(); // lists of terminals by box

/** The terminals of a box that are open in this tab, those from before a reload included. */
export async function terminalsOf(api, box) {
  if (!open.has(box)) open.set(box, []);
  const list = open.get(box);
  const stored = JSON.parse(sessionStorage.getItem(STORED) || "{}")[box] || [];
  for (const { id, received } of stored) {
    if (list.some((terminal) => terminal.id === id)) continue;
    const terminal = await Terminal.create(api, box);
    terminal.attach(id, received);
    list.push(terminal);
  }
  return list;
}

/** Start a shell in a terminal of a box. `show(terminal)` shows it, so that the shell has its size from the start. */
export async function openTerminal(api, box, show) {
  const terminal = await Terminal.create(api, box);
  show(terminal);
  try {
    await terminal.start();
  } catch (error) {
    terminal.dispose();
    throw error;
  }
  open.get(box).push(terminal);
  store();
}

/** Close all terminals, whose commands get a hangup when the grace period is over. */
export function closeTerminals() {
  for (const list of open.values()) for (const terminal of list) terminal.dispose();
  open.clear();
  sessionStorage.removeItem(STORED);
}

function store() {
  const stored = {};
  for (const [box, list] of open) {
    const going = list.filter((terminal) => terminal.isGoing);
    if (going.length) stored[box] = going.map(({ id, taken }) => ({ id, received: taken }));
  }
  if (Object.keys(stored).length) sessionStorage.setItem(STORED, JSON.stringify(stored));
  else sessionStorage.removeItem(STORED);
}
addEventListener("pagehide", store);

let loaded = null; // the modules of xterm.js

function load() {
  document.head.append(h("link", { rel: "stylesheet", href: "vendor/xterm.css" }));
  return Promise.all([import("./vendor/xterm.mjs"), import("./vendor/addon-fit.mjs"), import("./confined.js")]);
}

export class Terminal {
  /** A terminal that has no command yet. */
  static async create(api, box) {
    const [{ Terminal: Screen }, { FitAddon }] = await (loaded ||= load());
    const screen = new Screen({
      theme: THEME, fontSize: 13, scrollback: 10000, cursorBlink: false,
      fontFamily: 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
    });
    return new Terminal(api, box, screen, new FitAddon());
  }

  constructor(api, box, screen, fit) {
    this._api = api;
    this._box = box;
    this.id = null; // of the execution
    this._attachment = null;
    this._screen = screen;
    this._fit = fit;
    this._quiet = 0;
    this.isGoing = true;
    this._status = h("span", { class: "terminal-state", role: "status" }, "Connecting …");
    this._holder = h("div", { class: "terminal-screen" });
    this.element = h("div", { class: "terminal" }, this._holder, h("div", { class: "terminal-foot" }, this._status, h("span", { class: "muted keys" }, "Ctrl+Shift+C copies, Ctrl+Shift+V pastes, Ctrl+F6 leaves the terminal")));
    screen.loadAddon(fit);
    screen.attachCustomKeyEventHandler((event) => this._key(event));
    const encoder = new TextEncoder();
    screen.onData((text) => this._send(encoder.encode(text)));
    screen.onBinary((text) => this._send(Uint8Array.from(text, (character) => character.charCodeAt(0))));
    screen.onResize(() => this._resized());
    this._observer = new ResizeObserver(() => this._settle());
  }

  /** Start a shell, and attach to it. */
  async start() {
    const { execution_id: id } = await this._api.post(`boxes/${this._box}/exec`, { ...SHELL, env: ENVIRONMENT, tty: true, ...this._size() });
    this.attach(id, 0);
  }

  /** Attach to an execution, from its first output on. `received`: bytes of output that this tab had before it was
   * reloaded: they come once more to fill the screen, and what the screen answers to them was answered already. */
  attach(id, received) {
    const screen = this._screen;
    this.id = id;
    this._quiet = received;
    this._attachment = new Attachment(this._api, `boxes/${this._box}/executions/${id}`, 0, {
      output: (bytes, taken) => screen.write(bytes, taken),
      state: (name, text) => this._hear(name, text),
      notice: (text) => screen.write(`\r\n\x1b[33m[${clean(text)}]\x1b[0m\r\n`),
      size: () => this._size(),
    });
  }

  _size() { return { cols: this._screen.cols, rows: this._screen.rows }; }

  get taken() { return this._attachment.taken; }

  /** Show the terminal in an element; it may have been shown elsewhere before. */
  show(parent) {
    fill(parent, this.element);
    if (!this._screen.element) this._screen.open(this._holder);
    this._observer.observe(this._holder);
    this._fit.fit();
    this._screen.focus();
  }

  focus() { this._screen.focus(); }

  hide() { this._observer.disconnect(); }

  /** Kill the command, and forget the terminal. */
  async end() {
    if (this.isGoing) await this._api.remove(`boxes/${this._box}/executions/${this.id}`).catch(() => {});
    this.dispose();
    const list = open.get(this._box);
    list.splice(list.indexOf(this), 1);
    store();
  }

  dispose() {
    this.isGoing = false;
    this._attachment?.close();
    this._observer.disconnect();
    this._screen.dispose();
    this.element.remove();
  }

  _send(bytes) {
    if (this._attachment && this._attachment.taken >= this._quiet) this._attachment.send(bytes);
  }

  _key(event) {
    if (event.type !== "keydown" || !event.ctrlKey) return true;
    if (event.shiftKey && event.code === "KeyC" && this._screen.hasSelection()) document.execCommand("copy");
    else if (event.key !== "F6") return true;
    else this.element.dispatchEvent(new CustomEvent("leave", { bubbles: true }));
    event.preventDefault();
    return false;
  }

  _settle() {
    this._settling ||= requestAnimationFrame(() => {
      this._settling = 0;
      if (this._holder.clientWidth) this._fit.fit();
    });
  }

  /** Tell the server the size, and the last one of a storm of them. */
  _resized() {
    this._resizing ||= setTimeout(() => {
      this._resizing = 0;
      this._attachment?.resize();
    }, RESIZE_MILLISECONDS);
  }

  _hear(name, text) {
    if (name === "open") put(this._status, "Connected");
    else if (name === "waiting") put(this._status, "The connection broke; coming back …");
    else {
      this.isGoing = false;
      store();
      put(this._status, name === "ended" ? `The command has ended with ${text}.` : text);
      this._screen.options.disableStdin = true;
    }
    this.element.dataset.state = name;
    this.element.dispatchEvent(new CustomEvent("state", { bubbles: true }));
    if (name === "open") store();
  }
}

const clean = (text) => text.replace(/[\x00-\x1f\x7f-\x9f]/g, " ");
