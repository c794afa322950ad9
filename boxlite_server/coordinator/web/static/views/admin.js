// Keys, quotas and the audit, for operators.

import { act, button, confirm, field, fill, h, table } from "../dom.js";
import { QUOTAS } from "./account.js";
import { keys, moment } from "./keys.js";

const TABS = [["keys", "Keys", keys], ["quotas", "Quotas", quotas], ["audit", "Audit", audit]];

export async function show(page) {
  const [name = "keys"] = page.params;
  const [, title, tab] = TABS.find(([other]) => other === name) || TABS[0];
  page.setTitle(title);
  return h("div", { class: "view" }, h("div", { class: "bar" }, h("h1", {}, "Administration")),
    h("nav", { class: "tabs", "aria-label": "Administration" }, TABS.map(([other, text]) => h("a", { href: `#/admin/${other}`, "aria-current": other === name ? "page" : null }, text))),
    await tab(page));
}

async function quotas(page) {
  const { api } = page;
  const body = h("div", {});
  const form = h("div", {});

  async function read() {
    const { quotas: found } = await api.get("admin/quotas", null, page.signal);
    const limit = (own, [name, , format = String]) => (own[name] === null || own[name] === undefined ? "" : format(own[name]));
    fill(body, table("Quotas", ["Prefix", ...QUOTAS.map(([, text]) => text), ""], found.map((one) => [
      h("code", {}, one.prefix), ...QUOTAS.map((quota) => limit(one.own, quota)),
      h("div", { class: "buttons" },
        button("Change", () => edit(one.prefix, one.own), { class: "quiet", "aria-label": `Change the quotas of ${one.prefix}` }),
        button("Remove", (event) => act(event.currentTarget, async () => {
          if (!(await confirm(`Remove the quotas of ${one.prefix}?`, "Those of every prefix hold for it then.", "Remove"))) return;
          await api.remove(`admin/quotas/${encodeURIComponent(one.prefix)}`);
          await read();
        }), { class: "quiet", "aria-label": `Remove the quotas of ${one.prefix}` }))]), "No prefix has quotas of its own."));
  }

  function edit(prefix, own) {
    const name = h("input", { value: prefix, required: true, readonly: Boolean(prefix), maxlength: 128, spellcheck: "false", autocomplete: "off" });
    const inputs = QUOTAS.map(([quota, text]) => [quota, h("input", { type: "number", min: 0, value: own[quota] ?? "", placeholder: "no limit" }), text]);
    const submit = h("button", { type: "submit", class: "primary" }, "Set");
    fill(form, h("form", { class: "card", on: { submit: async (event) => {
      event.preventDefault();
      const set = Object.fromEntries(inputs.map(([quota, input]) => [quota, input.value === "" ? null : Number(input.value)]));
      const well = await act(submit, async () => {
        await api.put(`admin/quotas/${encodeURIComponent(name.value.trim())}`, set);
        await read();
      });
      if (well) fill(form);
    } } }, h("div", { class: "fields" }, field("Prefix", name, "* stands for every prefix"), inputs.map(([quota, input, text]) => field(quota === "memory_mib" ? "Memory in MiB" : text, input))),
      h("div", { class: "buttons" }, button("Cancel", () => fill(form)), submit)));
    (prefix ? inputs[0][1] : name).focus();
  }

  await read();
  return h("div", { class: "tab" }, form, body, h("p", {}, button("Set quotas", () => edit("", {}))));
}

async function audit(page) {
  const { api } = page;
  const body = h("div", {});
  const control = (name, placeholder) => h("input", { name, placeholder, "aria-label": placeholder, spellcheck: "false", autocomplete: "off" });
  const inputs = [control("audit_prefix", "Prefix"), control("action", "Operation"), control("key", "Key"), control("status", "Status, such as 4xx"), control("request_id", "Request id")];
  const submit = h("button", { type: "submit" }, "Show");

  async function read() {
    const query = Object.fromEntries(inputs.map((input) => [input.name, input.value.trim() || null]));
    const { lines } = await api.get("admin/audit", { ...query, limit: 200 }, page.signal);
    fill(body, table("Audit", ["When", "Status", "Operation", "Key", "Prefix", "Address", "Target", "Request id"], [...lines].reverse().map((line) => [
      moment(line.time), String(line.status || "–"), line.action, h("code", {}, line.key_id), line.prefix, line.address,
      h("code", { class: "target", title: line.target }, line.target), h("code", { class: "muted" }, line.request_id)]), "No line fits."));
  }

  await read();
  return h("div", { class: "tab" }, h("form", { class: "inline", on: { submit: (event) => { event.preventDefault(); act(submit, read); } } }, inputs, submit), body);
}
