// The REST API, as this page calls it: with the caller's key, below the caller's prefix, and with errors as exceptions.

const BASE = new URL("../v1/", document.baseURI);

/** An answer that tells of an error. `status` is 0 where there was no answer. */
export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }
}

export class Api {
  /** `key`: the API key, or null. `prefix`: the prefix of paths, or null for the caller's own. `onRefused` is called
   * with an answer of 401. */
  constructor(key, prefix, onRefused) {
    this.key = key;
    this.prefix = prefix;
    this._onRefused = onRefused;
  }

  /** Address of a path of a prefix, such as `boxes/web`. `query`: values by name; null leaves one out. */
  url(path, query) {
    const url = new URL(this._canonical(path), BASE);
    for (const [name, value] of Object.entries(query || {})) {
      if (value !== null && value !== undefined && value !== "") url.searchParams.append(name, value);
    }
    return url;
  }

  _canonical(path) {
    const isShared = /^(admin|config|me|health)(\/|$)/.test(path);
    return this.prefix && !isShared ? `${encodeURIComponent(this.prefix)}/${path}` : path;
  }

  /** Send a request. Resolves to the response of a success; throws ApiError, or AbortError. */
  async send(method, path, { query, json, body, headers, signal, keepalive } = {}) {
    const sent = new Headers(headers);
    if (this.key) sent.set("Authorization", `Bearer ${this.key}`);
    if (json !== undefined) {
      sent.set("Content-Type", "application/json");
      body = JSON.stringify(json);
    }
    let response;
    try {
      response = await fetch(this.url(path, query), { method, headers: sent, body, signal, keepalive, cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server does not answer. It may be restarting, or the network is away.");
    }
    if (!response.ok) throw await this._error(response);
    return response;
  }

  async _error(response) {
    const answer = await response.json().catch(() => null);
    const error = new ApiError(response.status, answer?.error?.message || `HTTP ${response.status}`, answer?.error?.code);
    if (response.status === 401) this._onRefused(error);
    return error;
  }

  /** Send a request, and resolve to its JSON; null without a body. */
  async call(method, path, options) {
    const response = await this.send(method, path, options);
    return response.status === 204 ? null : response.json();
  }

  get(path, query, signal) { return this.call("GET", path, { query, signal }); }
  post(path, json, options) { return this.call("POST", path, { json, ...options }); }
  put(path, json) { return this.call("PUT", path, { json }); }
  patch(path, json) { return this.call("PATCH", path, { json }); }
  remove(path, query) { return this.call("DELETE", path, { query }); }

  /** Yield the pages of a list: arrays of what stands under `field`. */
  async *pages(path, field, query, signal) {
    let token = null;
    do {
      const page = await this.get(path, { ...query, pageSize: 1000, pageToken: token }, signal);
      yield page[field];
      token = page.next_page_token;
    } while (token);
  }

  /** Yield server-sent events as `{event, id, data}`; `data` is text. EventSource could not send the key. */
  async *events(path, { query, headers, signal, method = "GET", json } = {}) {
    const response = await this.send(method, path, { query, json, signal, headers: { Accept: "text/event-stream", ...headers } });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const event = parsed(block);
          if (event) yield event;
        }
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  /** Open a WebSocket. Browsers cannot send the key with it, so a ticket goes along in the address. */
  async socket(path, query) {
    const url = await this.link(path, query);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    return socket;
  }

  /** An address that the browser itself can fetch, for a minute: it carries a ticket for this path and query alone. */
  async link(path, query) {
    const url = this.url(path, query);
    if (this.key) {
      const { ticket } = await this.post("tickets", { path: `/v1/${url.href.slice(BASE.href.length)}` });
      url.searchParams.append("ticket", ticket);
    }
    return url;
  }
}

function parsed(block) {
  const event = { event: "message", id: null, data: [] };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue; // a comment, or nothing
    const name = line.slice(0, colon), value = line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") event.data.push(value);
    else if (name === "event" || name === "id") event[name] = value;
  }
  if (!event.data.length && event.id === null) return null;
  event.data = event.data.join("\n");
  return event;
}

/** The bytes of base64. */
export function decode(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** A text that nobody else has, for an Idempotency-Key. */
export const nonce = () => [...crypto.getRandomValues(new Uint32Array(4))].map((number) => number.toString(16)).join("-");
