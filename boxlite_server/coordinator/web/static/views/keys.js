// API keys, for operators: list, make, revoke.

import { act, button, confirm, field, fill, h, put, table } from "../dom.js";
import { age, time } from "../format.js";

const DAY = 86400;
const LIVES = [["", "Never, or with your key"], [DAY, "1 day"], [7 * DAY, "7 days"], [30 * DAY, "30 days"], [90 * DAY, "90 days"], [365 * DAY, "1 year"]];
const FORBIDDEN = "worker:register"; // no key of a client has it

/** How long ago a time was. */
export const moment = (text) => text && h("time", { datetime: text, title: time(text), data: { age: "" } }, age(text));

export async function keys(page) {
  const { api, me } = page;
  const body = h("div", {});
  const form = h("div", {});
  const made = h("div", {});

  async function read() {
    const found = [];
    for await (const some of api.pages("admin/keys", "keys", null, page.signal)) found.push(...some);
    fill(body, table("Keys", ["Name", "Id", "Prefix", "State", "Made", "Ends", "Last use", "Scopes", ""], found.map((key) => [
      key.name, h("code", {}, key.id), key.prefix || "(workers)", h("span", { class: "badge", data: { status: key.status } }, key.status),
      moment(key.created_at), key.expires_at ? time(key.expires_at) : "never", moment(key.last_used_at) || "never",
      h("span", { class: "scopes", title: key.scopes.join(" ") }, key.scopes.join(" ")),
      key.status === "active" && button("Revoke", (event) => revoke(event.currentTarget, key), { class: "quiet danger", "aria-label": `Revoke ${key.name}` })]),
    "No key was made. Without any, a coordinator on loopback is open."));
  }

  async function revoke(control, key) {
    const who = key.id === me.sub ? "It is your own: you are signed out." : key.prefix ? "Whoever uses it is refused within seconds." : "Workers that use it cannot register any more.";
    await act(control, async () => {
      if (!(await confirm(`Revoke ${key.name}?`, `${who} It cannot be given back.`, "Revoke"))) return;
      await api.remove(`admin/keys/${encodeURIComponent(key.id)}`);
      await read();
    });
  }

  function open() {
    const input = (properties) => h("input", { required: true, maxlength: 128, spellcheck: "false", autocomplete: "off", ...properties });
    const name = input({ placeholder: "ci" });
    const prefix = input({ value: me.path_prefix || api.prefix || "default", readonly: Boolean(me.path_prefix), pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*" });
    const life = h("select", {}, LIVES.map(([seconds, text]) => h("option", { value: seconds }, text)));
    const scopes = me.scopes.filter((scope) => scope !== FORBIDDEN).map((scope) => [scope, h("input", { type: "checkbox", checked: scope.split(":")[0] !== "worker" })]);
    const submit = h("button", { type: "submit", class: "primary" }, "Make the key");
    fill(made);
    fill(form, h("form", { class: "card", "aria-label": "New key", on: { submit: async (event) => {
      event.preventDefault();
      const chosen = scopes.filter(([, box]) => box.checked).map(([scope]) => scope);
      const well = await act(submit, async () => {
        if (!chosen.length) throw new Error("Choose a scope at least: a key without any may do nothing.");
        show(await api.post("admin/keys", { name: name.value.trim(), prefix: prefix.value.trim(), scopes: chosen, expires_in: life.value ? Number(life.value) : undefined }));
      });
      if (well) await read();
    } } }, h("div", { class: "fields" }, field("Name", name, "For people"), field("Prefix", prefix, me.path_prefix ? "Your key makes keys of its own prefix alone" : "The tenant"), field("Ends after", life)),
      h("fieldset", {}, h("legend", {}, "Scopes"), h("div", { class: "checks" }, scopes.map(([scope, box]) => h("label", { class: "check" }, box, scope)))),
      h("div", { class: "buttons" }, button("Cancel", () => fill(form)), submit)));
    name.focus();
  }

  /** Show a new key. Nothing keeps its text: it is gone with this view. */
  function show(key) {
    const text = h("input", { readonly: true, value: key.key, spellcheck: "false", autocomplete: "off", class: "secret" });
    const said = h("span", { role: "status" });
    const copy = button("Copy", async () => {
      text.select();
      try {
        await navigator.clipboard.writeText(key.key);
        put(said, "Copied.");
      } catch {
        put(said, "The browser does not let this page copy: the key is selected, press Ctrl+C.");
      }
    });
    fill(form);
    fill(made, h("section", { class: "card", "aria-label": "The new key" },
      field(`The key ${key.name}`, text, "It is shown this once: keep it now."),
      h("div", { class: "buttons" }, said, copy, button("Done", () => { fill(made); add.focus(); }))));
    text.focus();
    text.select();
  }

  const add = button("New key", open);
  await read();
  return h("div", { class: "tab" }, h("p", {}, page.isOpen ? h("span", { class: "muted" }, "The first key, and those of workers, are made on the coordinator's host, with ", h("code", {}, "boxlite-server keys create"), ".") : add), form, made, body);
}
