// The snapshots of a box.

import { act, button, confirm, field, fill, h, table, tell } from "../dom.js";
import { age, bytes, time } from "../format.js";

export async function snapshots(view) {
  const { api, page, path } = view;
  const body = h("div", {});
  const name = h("input", { required: true, maxlength: 128, pattern: "[a-zA-Z0-9][a-zA-Z0-9._\\-]*", autocomplete: "off", spellcheck: "false", placeholder: "before-upgrade" });
  const submit = h("button", { type: "submit" }, "Take a snapshot");
  const form = h("form", { class: "inline", on: { submit: async (event) => {
    event.preventDefault();
    const well = await act(submit, async () => {
      await api.post(`${path}/snapshots`, { name: name.value.trim() });
      await read();
    });
    if (well) name.value = "";
  } } }, field("Name", name), submit);

  async function read() {
    const { snapshots: found } = await api.get(`${path}/snapshots`, null, page.signal);
    const change = (text, action, more) => button(text, (event) => act(event.currentTarget, action), more);
    fill(body, table("Snapshots", ["Name", "Taken", "Size", ""], found.map((one) => {
      const address = `${path}/snapshots/${encodeURIComponent(one.name)}`;
      const at = new Date(one.created_at * 1000).toISOString();
      return [one.name, h("time", { datetime: at, title: time(at), data: { age: "" } }, age(at)), bytes(one.size_bytes), h("div", { class: "buttons" },
        page.may("snapshot:write") && change("Restore", async () => {
          if (!(await confirm(`Restore ${one.name}?`, "The present disk of the box is lost.", "Restore"))) return;
          await api.post(`${address}/restore`);
          tell(`The disk of ${view.label} is that of ${one.name}.`);
          await view.read();
        }, { "aria-label": `Restore ${one.name}`, class: "quiet" }),
        page.may("snapshot:delete") && change("Remove", async () => {
          if (!(await confirm(`Remove the snapshot ${one.name}?`, null, "Remove"))) return;
          await api.remove(address);
          await read();
        }, { "aria-label": `Remove ${one.name}`, class: "quiet" }))];
    }), "There are no snapshots of this box."));
  }

  page.follow((event) => event.kind.startsWith("snapshot.") && event.box_id === view.box.box_id, read, 10);
  await read();
  return [page.may("snapshot:write") && form, body];
}
