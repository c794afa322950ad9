// One client attached to one execution, which comes back behind what it has whenever its connection breaks.

const WINDOW = 1024 * 1024; // bytes of output that may wait here: a browser cannot stop a socket that it reads
const CONFIRMED = 128 * 1024; // bytes after which the server hears what was taken
const RETRY_SECONDS = [0.1, 0.5, 1, 2, 4, 8, 15];
const STABLE_SECONDS = 15;
const MAX_QUEUED = 64 * 1024; // bytes of input that wait for the connection
const STUCK_SECONDS = 10; // for which input may wait in an open socket

export class Attachment {
  /**
   * `path`: of the execution. `received`: the bytes of its output that are here already.
   * `handlers`: `output(bytes, taken)` gets each piece and calls `taken` when it is dealt with; `state(name, text)` hears
   * of `open`, `waiting`, `ended` (with the exit code) and `lost`; `notice(text)` of what the server says; `size()`
   * returns `{cols, rows}`.
   */
  constructor(api, path, received, handlers) {
    this._api = api;
    this._path = path;
    this._handlers = handlers;
    this.received = received; // bytes that have come
    this.taken = received; // bytes that were dealt with
    this._confirmed = received;
    this._socket = null;
    this._queue = [];
    this._queued = 0;
    this._isOver = false;
    this._wake = () => {};
    this._ending = new AbortController();
    addEventListener("online", () => this._renew(), { signal: this._ending.signal });
    document.addEventListener("visibilitychange", () => this._wake(), { signal: this._ending.signal });
    this._run();
  }

  /** Send bytes of input; they wait while the connection is away. */
  send(bytes) {
    if (this._isOver) return;
    if (this._socket) {
      this._socket.send(bytes);
      this._watch();
    } else if (this._queued + bytes.length <= MAX_QUEUED) {
      this._queue.push(bytes);
      this._queued += bytes.length;
      this._wake();
    }
  }

  /** Tell the server the size of the terminal. */
  resize() { this._control({ type: "resize", ...this._handlers.size() }); }

  /** Leave the command to itself. */
  close() {
    this._isOver = true;
    this._ending.abort();
    this._socket?.close(1000);
    this._wake();
  }

  async _run() {
    let failures = 0;
    while (!this._isOver) {
      const began = Date.now(), before = this.received;
      await this._attach().catch(() => {});
      if (this._isOver) return;
      const worked = this.received !== before || Date.now() - began > STABLE_SECONDS * 1000;
      failures = worked ? 0 : failures + 1;
      this._handlers.state("waiting");
      await this._look(failures);
      if (!this._isOver) await this._rest(RETRY_SECONDS[Math.min(failures, RETRY_SECONDS.length - 1)]);
    }
  }

  /** Attach once; resolves when the socket is closed. */
  async _attach() {
    const socket = await this._api.socket(`${this._path}/attach`, { received: this.received, window: WINDOW });
    if (this._isOver) return socket.close();
    this._latest = socket;
    await new Promise((resolve) => {
      socket.onopen = () => this._begin(socket);
      socket.onmessage = ({ data }) => socket === this._latest && (typeof data === "string" ? this._hear(JSON.parse(data)) : this._take(new Uint8Array(data, 1)));
      socket.onclose = resolve;
      this._drop = resolve;
    });
    this._socket = this._latest = null;
  }

  _begin(socket) {
    this._socket = socket;
    this._confirmed = this.received;
    this.resize();
    for (const bytes of this._queue) socket.send(bytes);
    this._queue = [];
    this._queued = 0;
    this._handlers.state("open");
  }

  _take(bytes) {
    this.received += bytes.length;
    this._handlers.output(bytes, () => {
      this.taken += bytes.length;
      if (this.taken - this._confirmed >= CONFIRMED) this._confirm();
    });
  }

  _confirm() {
    this._confirmed = this.taken;
    this._control({ type: "received", bytes: this.taken });
  }

  _hear(message) {
    if (message.type === "exit") this._end("ended", message.exit_code);
    else if (message.type === "error") {
      const lost = Number.isSafeInteger(message.dropped_bytes) ? message.dropped_bytes : 0;
      this.received += lost;
      this.taken += lost;
      this._handlers.notice(String(message.message));
    }
  }

  _end(state, text) {
    this._isOver = true;
    this._ending.abort();
    this._handlers.state(state, text);
  }

  /** Find out why there is no connection: a handshake does not tell a page. */
  async _look(failures) {
    try {
      const execution = await this._api.get(this._path);
      // The end comes over the socket, behind the last output. 409 until the server notices that the former socket broke.
      if (execution.status !== "running" && failures > RETRY_SECONDS.length) this._end("ended", execution.exit_code);
    } catch (error) {
      if (error.status === 404 || error.status === 410) this._end("lost", "The server does not know this command any more.");
      else if (error.status === 401 || error.status === 403) this._end("lost", error.message);
    }
  }

  _rest(seconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this._wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Take another connection, since this one is likely to be dead; nothing is lost by that. */
  _renew() {
    this._latest?.close();
    this._drop?.();
    this._wake();
  }

  _watch() {
    if (this._stuck) return;
    this._stuck = setTimeout(() => {
      this._stuck = 0;
      if (this._socket?.bufferedAmount) this._renew();
    }, STUCK_SECONDS * 1000);
  }

  _control(message) {
    if (this._socket?.readyState === WebSocket.OPEN) this._socket.send(JSON.stringify(message));
  }
}
