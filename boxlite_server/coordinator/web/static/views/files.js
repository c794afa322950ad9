// The files of a box: a directory, with upload, download and view.

import { act, button, confirm, fill, h, table, tell } from "../dom.js";
import { age, bytes, time } from "../format.js";

const SHOWN_BYTES = 1024 * 1024; // of a text
const IMAGE_BYTES = 20 * 1024 * 1024;
const IMAGES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp", avif: "image/avif", svg: "image/svg+xml", ico: "image/x-icon", bmp: "image/bmp" };

export async function files(view) {
  const browser = new Browser(view, normal(view.page.params[2] || "/"));
  await browser.read();
  return browser.element;
}

class Browser {
  constructor(view, directory) {
    this.view = view;
    this.api = view.api;
    this.path = `${view.path}/files`;
    this.directory = directory;
    this.body = h("div", {});
    this.more = h("div", {});
    this.viewer = h("section", { class: "viewer", "aria-live": "polite" });
    this.said = h("span", { class: "muted", role: "status" });
    const chooser = h("input", { type: "file", multiple: true, hidden: true, "aria-label": "Files to upload", on: { change: () => this.upload([...chooser.files]).finally(() => { chooser.value = ""; }) } });
    this.element = h("div", { on: {
      dragover: (event) => { event.preventDefault(); this.element.classList.add("drop"); },
      dragleave: () => this.element.classList.remove("drop"),
      drop: (event) => { event.preventDefault(); this.element.classList.remove("drop"); this.upload([...event.dataTransfer.files]); },
    } },
      h("div", { class: "bar" }, this.crumbs(), h("span", { class: "grow" }), this.said,
        button("Download all", (event) => act(event.currentTarget, () => this.download(this.directory, true)), { class: "quiet", title: "This directory as a tar archive" }),
        button("Upload", () => chooser.click(), { class: "primary", title: "Or drop files here" }), chooser),
      this.body, this.more, this.viewer);
  }

  crumbs() {
    const parts = this.directory.split("/").filter(Boolean);
    const link = (text, path) => h("a", { href: this.address(path), "aria-current": path === this.directory ? "page" : null }, text);
    return h("nav", { class: "crumbs", "aria-label": "Directory" }, link("/", "/"), parts.map((part, index) => [link(part, `/${parts.slice(0, index + 1).join("/")}`), index < parts.length - 1 && "/"]));
  }

  address(path) { return `#/${this.view.path}/files?${encodeURIComponent(path)}`; }

  async read() {
    this.entries = [];
    await this.page(null);
  }

  async page(token) {
    const found = await this.api.get(`${this.path}/list`, { path: this.directory, pageToken: token }, this.view.page.signal);
    this.entries.push(...found.entries);
    this.draw();
    fill(this.more, found.next_page_token && h("p", {}, button("Show more", (event) => act(event.currentTarget, () => this.page(found.next_page_token)))));
  }

  draw() {
    const order = [...this.entries].sort((one, two) => (two.type === "directory") - (one.type === "directory") || (one.name < two.name ? -1 : 1));
    const up = this.directory === "/" ? [] : [[h("a", { href: this.address(normal(`${this.directory}/..`)) }, ".."), "", "", "", ""]];
    fill(this.body, table(`Files in ${this.directory}`, ["Name", "Size", "Mode", "Changed", ""], [...up, ...order.map((entry) => this.row(entry))], "The directory is empty."));
  }

  row(entry) {
    const path = normal(`${this.directory}/${entry.name}`);
    const link = (text) => h("a", { href: this.address(path) }, text);
    const name = {
      directory: () => link(`${entry.name}/`),
      file: () => button(entry.name, (event) => act(event.currentTarget, () => this.show(path, entry)), { class: "quiet name" }),
      link: () => [button(entry.name, (event) => act(event.currentTarget, () => this.follow(path, entry)), { class: "quiet name" }), h("small", { class: "muted" }, `→ ${entry.link_target}`)],
    }[entry.type]?.() || entry.name;
    const fetched = ["file", "directory"].includes(entry.type);
    return [name, entry.type === "file" ? bytes(entry.size) : "", h("code", { class: "muted" }, entry.mode),
      entry.modified_at && h("time", { datetime: entry.modified_at, title: time(entry.modified_at) }, `${age(entry.modified_at)} ago`),
      fetched && button("Download", (event) => act(event.currentTarget, () => this.download(path, entry.type === "directory")), { class: "quiet", "aria-label": `Download ${entry.name}` })];
  }

  /** Have the browser fetch a file, or a directory as an archive. */
  async download(path, isDirectory) {
    const url = await this.api.link(isDirectory ? this.path : `${this.path}/content`, { path });
    const name = path.split("/").pop() || "root";
    const link = h("a", { href: url, download: isDirectory ? `${name}.tar` : name, hidden: true });
    document.body.append(link);
    link.click();
    link.remove();
  }

  async upload(chosen) {
    for (const file of chosen) {
      const path = normal(`${this.directory}/${file.name}`);
      if (this.entries.some((entry) => entry.name === file.name) && !(await confirm(`Replace ${file.name}?`, "There is a file of this name.", "Replace"))) continue;
      fill(this.said, `Uploading ${file.name}, ${bytes(file.size)} …`);
      try {
        await this.api.send("PUT", `${this.path}/content`, { query: { path }, body: file, headers: { "Content-Type": "application/octet-stream" } });
        tell(`${file.name} is uploaded.`);
      } catch (error) {
        tell(`${file.name}: ${error.message}`, true);
      }
    }
    fill(this.said);
    await this.read();
  }

  /** A link is a directory or a file, which only asking tells. */
  async follow(path, entry) {
    try {
      await this.show(path, { ...entry, size: 0 });
    } catch (error) {
      if (error.status !== 400) throw error;
      location.hash = this.address(path);
    }
  }

  async show(path, entry) {
    const type = IMAGES[path.split(".").pop().toLowerCase()];
    const most = type ? IMAGE_BYTES : SHOWN_BYTES;
    const { content, whole } = await this.readFile(path, entry.type === "link" || entry.size > most ? most : 0);
    const isCut = content.length < whole;
    fill(this.viewer, h("div", { class: "bar" }, h("h2", { tabindex: -1 }, path), h("span", { class: "muted" }, isCut ? `the first ${bytes(content.length)}` : bytes(content.length)), h("span", { class: "grow" }),
      button("Close", () => fill(this.viewer), { class: "quiet" })), this.contentOf(content, type, isCut));
    this.viewer.querySelector("h2").focus();
  }

  /** The content of a file, and how many bytes it has. `most`: how many are wanted; 0 means all. */
  async readFile(path, most) {
    const headers = most ? { Range: `bytes=0-${most - 1}` } : {};
    try {
      const response = await this.api.send("GET", `${this.path}/content`, { query: { path }, headers, signal: this.view.page.signal });
      const content = new Uint8Array(await response.arrayBuffer());
      return { content, whole: Number(response.headers.get("Content-Range")?.split("/")[1] || content.length) };
    } catch (error) {
      if (error.status !== 416) throw error;
      return { content: new Uint8Array(), whole: 0 }; // an empty file has no range
    }
  }

  contentOf(content, type, isCut) {
    if (type && !isCut) {
      const url = URL.createObjectURL(new Blob([content], { type }));
      return h("img", { src: url, alt: "", on: { load: () => URL.revokeObjectURL(url), error: () => URL.revokeObjectURL(url) } });
    }
    if (content.subarray(0, 8192).includes(0)) return h("p", { class: "muted" }, "This is not text. Download it to look at it.");
    return h("pre", { tabindex: 0, role: "region", "aria-label": "Content" }, new TextDecoder().decode(content));
  }
}

/** An absolute path without `.`, `..` and doubled slashes. */
function normal(path) {
  const parts = [];
  for (const part of path.split("/")) {
    if (part === "..") parts.pop();
    else if (part && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}
