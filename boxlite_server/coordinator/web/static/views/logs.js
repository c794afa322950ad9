// The output of a box's main command, as it comes.

import { decode } from "../api.js";
import { fill, h, put } from "../dom.js";
import { plain } from "../format.js";

const LINES = 1000; // from before
const MAX_CHARACTERS = 1000000; // that are kept; older ones go
const RETRY_SECONDS = 3;

export async function logs(view) {
  const text = h("pre", { class: "log", tabindex: 0, role: "log", "aria-label": "Output of the main command" });
  const state = h("span", { class: "muted", role: "status" });
  const wrap = h("input", { type: "checkbox", checked: true, on: { change: () => text.classList.toggle("wrap", wrap.checked) } });
  text.classList.add("wrap");
  follow(view, text, state);
  return h("div", { class: "log-view" }, h("div", { class: "bar" }, state, h("span", { class: "grow" }), h("label", { class: "check" }, wrap, "Wrap lines")), text);
}

async function follow(view, text, state) {
  const { signal } = view.page;
  while (!signal.aborted) {
    fill(text);
    put(state, view.isUp ? "Following" : "");
    let said = "";
    try {
      said = await read(view, text, signal);
    } catch (error) {
      said = error.message;
    }
    if (signal.aborted) return;
    put(state, said || (view.isUp ? "The stream ended" : "The box does not run"));
    await changed(view, signal);
  }
}

/** Show the stream until it ends. Resolves to the reason, if the stream tells one. */
async function read(view, text, signal) {
  const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  const output = new Output(text);
  for await (const { event, data } of view.api.events(`${view.path}/logs`, { query: { tail: LINES, follow: true }, signal })) {
    if (event === "error") return data;
    if (decoders[event]) output.add(event, plain(decoders[event].decode(decode(JSON.parse(data).data), { stream: true })));
  }
  return "";
}

/** Wait until the box runs again, or its stream can be taken up again. */
async function changed(view, signal) {
  await new Promise((resolve) => setTimeout(resolve, RETRY_SECONDS * 1000));
  while (!view.isUp && !signal.aborted) {
    await new Promise((resolve) => {
      view.onChange(resolve);
      signal.addEventListener("abort", resolve);
    });
  }
}

/** Text at the end of an element, put there once in each frame; the view stays at the end if it was there. */
class Output {
  constructor(element) {
    this.element = element;
    this.waiting = [];
    this.size = 0;
    this.frame = 0;
  }

  add(stream, text) {
    this.waiting.push([stream, text]);
    this.frame ||= requestAnimationFrame(() => this.flush());
  }

  flush() {
    this.frame = 0;
    const { element } = this;
    const isAtEnd = element.scrollHeight - element.scrollTop - element.clientHeight < 40;
    for (const [stream, text] of this.waiting) {
      element.append(stream === "stderr" ? h("span", { class: "stderr" }, text) : text);
      this.size += text.length;
    }
    this.waiting = [];
    while (this.size > MAX_CHARACTERS && element.firstChild) {
      this.size -= element.firstChild.textContent.length;
      element.firstChild.remove();
    }
    if (isAtEnd) element.scrollTop = element.scrollHeight;
  }
}
