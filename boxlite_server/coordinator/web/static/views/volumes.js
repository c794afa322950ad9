// The volumes of a prefix.

import { act, button, confirm, field, fill, h, put, table } from "../dom.js";
import { age, time } from "../format.js";

export async function show(page) {
  const { api } = page;
  const body = h("div", {}), count = h("span", { class: "muted" });
  const name = h("input", { maxlength: 128, pattern: "[a-zA-Z0-9][a-zA-Z0-9._\\-]*", placeholder: "or none", autocomplete: "off", spellcheck: "false" });
  const submit = h("button", { type: "submit" }, "Create a volume");
  const form = h("form", { class: "inline", on: { submit: async (event) => {
    event.preventDefault();
    const well = await act(submit, async () => {
      await api.post("volumes", name.value ? { name: name.value } : {});
      await read();
    });
    if (well) name.value = "";
  } } }, field("Name", name), submit);

  async function read() {
    const { volumes } = await api.get("volumes", null, page.signal);
    put(count, String(volumes.length));
    fill(body, table("Volumes", ["Name", "Id", "State", "Age", ""], volumes.map((volume) => [
      volume.name || "", h("code", { class: "muted" }, volume.id), volume.state || "",
      h("time", { datetime: volume.created_at, title: time(volume.created_at), data: { age: "" } }, age(volume.created_at)),
      page.may("volume:write") && button("Remove", (event) => act(event.currentTarget, async () => {
        if (!(await confirm(`Remove ${volume.name || volume.id}?`, "Its data is lost.", "Remove"))) return;
        await api.remove(`volumes/${encodeURIComponent(volume.id)}`);
        await read();
      }), { class: "quiet", "aria-label": `Remove ${volume.name || volume.id}` }),
    ]), "There are no volumes."));
  }

  await read();
  page.follow((event) => event.kind.startsWith("volume."), read, 10);
  page.setTitle("Volumes");
  return h("div", { class: "view" }, h("div", { class: "bar" }, h("h1", {}, "Volumes"), count), page.may("volume:write") && form, body);
}
