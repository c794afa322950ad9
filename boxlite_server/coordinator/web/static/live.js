// What changes at the server, as its events tell; where there are none, views are refreshed from time to time.

const RETRY_SECONDS = [1, 2, 5, 10, 20];
const GATHER_MILLISECONDS = 150; // for events that come together
const HIDDEN_SECONDS = 20; // for which a hidden tab keeps its stream: a browser has few connections to one server

export class Live {
  /** `path`: of the stream. `prefix`: whose events are wanted, where the stream has those of all. */
  constructor(api, path, prefix) {
    this._api = api;
    this._path = path;
    this._prefix = prefix;
    this._followers = new Set();
    this._ending = new AbortController();
    this._connected = false;
    this._last = null; // the id of the last event
    this._stream = null; // ends the stream that is open
    this._hiding = 0;
    this._wake = () => {};
    /** Resolves when the stream is open, or cannot be: what is read from then on misses nothing. */
    this.ready = new Promise((resolve) => { this._isReady = resolve; });
  }

  start() {
    const { signal } = this._ending;
    const timer = setInterval(() => this._poll(), 1000);
    signal.addEventListener("abort", () => {
      clearInterval(timer);
      clearTimeout(this._hiding);
      this._stream?.abort();
    });
    document.addEventListener("visibilitychange", () => this._seen(), { signal });
    this._listen();
  }

  stop() { this._ending.abort(); }

  /** Call `refresh(events)` after events for which `wants(event)` is true, and with an empty list when much may have
   * changed: without events that is every so many seconds. */
  follow(wants, refresh, seconds, signal) {
    const follower = { wants, refresh, seconds, due: Date.now() + seconds * 1000, gathered: [], all: false, timer: 0, busy: false };
    this._followers.add(follower);
    signal.addEventListener("abort", () => {
      this._followers.delete(follower);
      clearTimeout(follower.timer);
    });
  }

  _seen() {
    clearTimeout(this._hiding);
    if (document.visibilityState === "hidden") this._hiding = setTimeout(() => this._stream?.abort(), HIDDEN_SECONDS * 1000);
    else {
      this._wake();
      this._poll();
    }
  }

  async _listen() {
    const { signal } = this._ending;
    for (let failures = 0; !signal.aborted; failures++) {
      this._stream = new AbortController();
      try {
        const headers = this._last ? { "Last-Event-ID": this._last } : {};
        for await (const event of this._api.events(this._path, { headers, signal: this._stream.signal })) {
          failures = 0;
          if (!this._connected) this._open();
          this._take(event);
        }
      } catch (error) {
        if ([401, 403, 404, 405, 501].includes(error.status)) return; // views are refreshed from time to time
      } finally {
        this._connected = false;
        this._isReady();
      }
      const seconds = RETRY_SECONDS[Math.min(failures, RETRY_SECONDS.length - 1)];
      await new Promise((resolve) => {
        this._wake = resolve;
        if (document.visibilityState !== "hidden") setTimeout(resolve, seconds * 1000);
      });
    }
  }

  _open() {
    this._connected = true;
    this._isReady();
    if (!this._last) for (const follower of this._followers) this._later(follower, null); // which came before the stream
  }

  _later(follower, event) {
    if (event) follower.gathered.push(event);
    else follower.all = true;
    follower.timer ||= setTimeout(() => this._refresh(follower), GATHER_MILLISECONDS);
  }

  _take({ event, id, data }) {
    if (id) this._last = id;
    if (event === "error" || !data) return;
    const told = event === "gap" ? null : JSON.parse(data);
    if (told?.prefix && this._prefix && told.prefix !== this._prefix) return;
    for (const follower of this._followers) if (!told || follower.wants(told)) this._later(follower, told);
  }

  _poll() {
    if (this._connected || document.visibilityState !== "visible") return;
    for (const follower of this._followers) if (Date.now() >= follower.due && !follower.busy) this._refresh(follower);
  }

  async _refresh(follower) {
    if (follower.busy) {
      follower.timer = setTimeout(() => this._refresh(follower), GATHER_MILLISECONDS);
      return;
    }
    const events = follower.all ? [] : follower.gathered;
    Object.assign(follower, { gathered: [], all: false, timer: 0, busy: true });
    try {
      await follower.refresh(events);
    } catch {
      // What is shown stays, and the next refresh tells more.
    } finally {
      follower.busy = false;
      follower.due = Date.now() + follower.seconds * 1000;
    }
  }
}
