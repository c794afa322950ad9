// The page: signing in, the frame around the views, and which view an address shows.

import { Api } from "./api.js";
import { button, field, fill, h, tell } from "./dom.js";
import { age } from "./format.js";
import { Live } from "./live.js";
import { closeTerminals } from "./terminals.js";
import * as admin from "./views/admin.js";
import * as account from "./views/account.js";
import * as box from "./views/box.js";
import * as boxes from "./views/boxes.js";
import * as images from "./views/images.js";
import * as volumes from "./views/volumes.js";
import * as workers from "./views/workers.js";

// The key stays in sessionStorage: it outlives a reload, belongs to this tab alone, and goes with it. localStorage would
// keep it on the disk for every tab, and a cookie would go with requests that the page did not send.
const KEY = "boxlite.key";
const PREFIX = "boxlite.prefix";
const READY_MILLISECONDS = 500; // for which the first view waits for the stream of events

const main = document.getElementById("main");
const top = document.getElementById("top");

const VIEWS = [
  [/^boxes$/, boxes],
  [/^boxes\/([^/]+)(?:\/([a-z]+))?(?:\?(.*))?$/, box],
  [/^images$/, images],
  [/^volumes$/, volumes],
  [/^workers$/, workers],
  [/^admin(?:\/([a-z]+))?$/, admin],
  [/^account$/, account],
];

let session = null; // what the caller is and may do; null before signing in
let shown = null; // what ends with the present view

class Session {
  constructor(api, me) {
    this.api = api;
    this.me = me;
    this.isOpen = !api.key;
    this.follow();
  }

  /** Follow what happens: in the prefix, and for operators to workers too. */
  follow() {
    this.live?.stop();
    const prefix = this.api.prefix || this.me.path_prefix || "default";
    this.live = this.may("worker:admin") ? new Live(this.api, "admin/coordinator/events", prefix) : new Live(this.api, "events", null);
    this.live.start();
  }

  may(scope) { return this.me.scopes.includes(scope); }
}

/** What a view gets. Everything that it begins here ends when another view is shown. */
class Page {
  constructor(params) {
    Object.assign(this, session, { params, main });
    this._ending = new AbortController();
    this.signal = this._ending.signal;
  }

  may(scope) { return session.may(scope); }

  /** Call `action` again and again, while the tab is visible. */
  every(seconds, action) {
    const timer = setInterval(() => document.visibilityState === "visible" && action(), seconds * 1000);
    this.signal.addEventListener("abort", () => clearInterval(timer));
  }

  /** Call `refresh` when an event says that something changed for which `wants(event)` is true. */
  follow(wants, refresh, seconds = 4) { session.live.follow(wants, refresh, seconds, this.signal); }

  setTitle(text) { document.title = `${text} – BoxLite`; }

  end() { this._ending.abort(); }
}

// ---- signing in --------------------------------------------------------------------------------------------

async function enter(key) {
  const api = new Api(key, sessionStorage.getItem(PREFIX), (error) => session && leave(error.message));
  const me = await new Api(key, null, () => {}).get("me");
  if (me.path_prefix) api.prefix = null; // the key opens its own prefix alone, which paths without one mean
  if (key) sessionStorage.setItem(KEY, key);
  session = new Session(api, me);
  frame();
  await Promise.race([session.live.ready, new Promise((resolve) => setTimeout(resolve, READY_MILLISECONDS))]);
  await route();
}

function leave(message) {
  sessionStorage.removeItem(KEY);
  sessionStorage.removeItem(PREFIX);
  closeTerminals();
  session?.live.stop();
  shown?.end();
  session = shown = null;
  signIn(message);
}

function signIn(message) {
  document.title = "Sign in – BoxLite";
  fill(top, brand());
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true, placeholder: "blx_…" });
  const problem = h("p", { class: "problem", role: "alert" }, message || "");
  const submit = h("button", { type: "submit", class: "primary" }, "Sign in");
  const form = h("form", { class: "signin card", on: { submit: async (event) => {
    event.preventDefault();
    submit.disabled = true;
    fill(problem);
    try {
      const key = input.value.trim();
      if (!/^[!-~]+$/.test(key)) throw new Error("This is not an API key: it holds characters that no key has.");
      await enter(key);
    } catch (error) {
      fill(problem, error.message);
      submit.disabled = false;
      input.focus();
    }
  } } },
    h("h1", {}, "Sign in"),
    field("API key", input, "It stays in this tab, and is forgotten when you sign out or close it."),
    problem, submit,
    h("p", { class: "muted" }, "An operator makes keys with ", h("code", {}, "boxlite-server keys create"), "."));
  fill(main, form);
  input.focus();
}

// ---- the frame ---------------------------------------------------------------------------------------------

const brand = () => h("a", { class: "brand", href: "#/boxes" }, h("img", { src: "icon.svg", alt: "", width: 22, height: 22 }), "BoxLite");

function frame() {
  const links = [["boxes", "Boxes", "box:read"], ["images", "Images", "image:read"], ["volumes", "Volumes", "volume:read"],
    ["workers", "Workers", "worker:admin"], ["admin", "Admin", "worker:admin"]];
  fill(top, brand(),
    h("nav", { "aria-label": "Main" }, links.filter(([, , scope]) => session.may(scope)).map(([path, text]) => h("a", { href: `#/${path}` }, text))),
    h("div", { class: "who" }, prefixBox(),
      h("a", { href: "#/account", title: "Key, scopes and quotas" }, session.isOpen ? "No key" : session.me.sub),
      !session.isOpen && button("Sign out", () => leave(), { class: "quiet" })));
}

/** Who is confined to no prefix may look into any. */
function prefixBox() {
  if (session.me.path_prefix || !session.may("worker:admin")) return null;
  const input = h("input", { class: "prefix", value: session.api.prefix || "", placeholder: "default", title: "Prefix (tenant)", size: 9, spellcheck: "false", on: { change: () => {
    session.api.prefix = input.value.trim() || null;
    if (session.api.prefix) sessionStorage.setItem(PREFIX, session.api.prefix);
    else sessionStorage.removeItem(PREFIX);
    session.follow();
    if (location.hash === "#/boxes") route();
    else location.hash = "#/boxes";
  } } });
  return h("label", {}, h("span", {}, "Prefix"), input);
}

// ---- views -------------------------------------------------------------------------------------------------

async function route() {
  if (!session) return;
  const address = location.hash.replace(/^#\/?/, "") || "boxes";
  for (const [pattern, view] of VIEWS) {
    const match = pattern.exec(address);
    if (match) return show(view, match.slice(1), address);
  }
  location.replace("#/boxes");
}

async function show(view, params, address) {
  shown?.end();
  const page = (shown = new Page(params.map((text) => text && decodeURIComponent(text))));
  for (const link of top.querySelectorAll("nav a, .who a")) {
    const isHere = address.split("/")[0] === link.hash.slice(2);
    if (isHere) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else link.removeAttribute("aria-current");
  }
  try {
    const element = await view.show(page);
    if (page.signal.aborted) return;
    fill(main, element);
    main.scrollTop = 0;
    page.onShown?.();
  } catch (error) {
    if (page.signal.aborted || error.name === "AbortError") return;
    fill(main, h("div", { class: "card" }, h("h1", {}, "This cannot be shown"), h("p", { class: "problem" }, error.message),
      button("Try again", route)));
  }
}

/** Ages go on while nothing else changes. */
setInterval(() => {
  for (const element of document.querySelectorAll("time[data-age]")) element.textContent = age(element.dateTime);
}, 5000);

addEventListener("hashchange", route);
addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError") event.preventDefault();
  else if (event.reason?.name === "ApiError") {
    event.preventDefault();
    tell(event.reason.message, true);
  }
});

/** Enter with the key of this tab, or without one where the server asks for none. */
async function begin() {
  const remembered = sessionStorage.getItem(KEY);
  try {
    const { authentication } = await new Api(null, null, () => {}).get("config");
    if (authentication === "none") await enter(null);
    else if (remembered) await enter(remembered);
    else signIn();
  } catch (error) {
    if (error.status === 401) sessionStorage.removeItem(KEY);
    signIn(error.message);
  }
}

begin();
