// Who the caller is, what it may do and what it has.

import { h, table } from "../dom.js";
import { bytes, mib, time } from "../format.js";

export const QUOTAS = [["boxes", "Boxes"], ["running_boxes", "Running boxes"], ["cpus", "CPUs"], ["memory_mib", "Memory", mib], ["volumes", "Volumes"],
  ["executions", "Commands"], ["transfers", "Transfers"], ["spooled_bytes", "Spooled bytes", bytes], ["requests_per_second", "Requests per second"]];

export async function show(page) {
  const me = await page.api.get("me", null, page.signal);
  page.setTitle("Account");
  const rows = QUOTAS.map(([name, text, format = String]) => [text, me.used?.[name] === undefined ? "" : format(me.used[name]) || "0", me.quotas?.[name] === null || me.quotas?.[name] === undefined ? "no limit" : format(me.quotas[name])]);
  return h("div", { class: "view" }, h("div", { class: "bar" }, h("h1", {}, "Account")),
    page.isOpen && h("p", { class: "note" }, "This coordinator is open: whoever reaches it may do everything. ", h("code", {}, "boxlite-server keys create"), " closes it."),
    h("dl", { class: "facts" },
      h("div", {}, h("dt", {}, "Key"), h("dd", {}, h("code", {}, me.sub))),
      h("div", {}, h("dt", {}, "Prefix"), h("dd", {}, h("code", {}, me.path_prefix || "default"))),
      h("div", {}, h("dt", {}, "Ends"), h("dd", {}, me.expires_at ? time(me.expires_at) : "never")),
      h("div", { class: "wide" }, h("dt", {}, "Scopes"), h("dd", {}, me.scopes.map((scope) => h("code", {}, scope))))),
    h("h2", {}, "Quotas"), table("Quotas", ["", "In use", "At most"], rows),
    h("p", { class: "muted" }, "Commands, transfers and spooled bytes count on each worker, requests at each coordinator."),
    h("p", { class: "muted" }, "The whole API: ", h("a", { href: "../swagger-ui/" }, "its operations"), " and ", h("a", { href: "../openapi.yaml" }, "openapi.yaml"), "."));
}
