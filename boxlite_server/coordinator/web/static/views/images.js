// The images in the workers' cache.

import { act, button, confirm, field, fill, h, put, table, tell } from "../dom.js";
import { age, bytes, time } from "../format.js";

export async function show(page) {
  const { api } = page;
  const body = h("div", {}), usage = h("span", { class: "muted" });
  const reference = h("input", { required: true, maxlength: 512, placeholder: "python:3.12-slim", autocomplete: "off", spellcheck: "false" });
  const submit = h("button", { type: "submit" }, "Pull");
  const form = h("form", { class: "inline", on: { submit: async (event) => {
    event.preventDefault();
    const well = await act(submit, async () => {
      const image = await api.post("images/pull", { reference: reference.value.trim() });
      tell(`${image.reference || reference.value} is there.`);
      await read();
    });
    if (well) reference.value = "";
  } } }, field("Image", reference), submit);

  async function read() {
    const [{ images }, used] = await Promise.all([api.get("images", null, page.signal), api.get("images/usage", null, page.signal)]);
    put(usage, `${used.count}, ${bytes(used.known_bytes)}`);
    fill(body, table("Images", ["Image", "Id", "Size", "Age", ""], images.map((image) => [
      image.reference, h("code", { class: "muted" }, image.id.replace("sha256:", "").slice(0, 12)), bytes(image.size_bytes),
      h("time", { datetime: image.cached_at, title: time(image.cached_at), data: { age: "" } }, age(image.cached_at)),
      page.may("image:write") && button("Remove", (event) => act(event.currentTarget, async () => {
        if (!(await confirm(`Remove ${image.reference}?`, "It goes from the cache of each worker.", "Remove"))) return;
        await api.remove(`images/${encodeURIComponent(image.reference)}`);
        await read();
      }), { class: "quiet", "aria-label": `Remove ${image.reference}` }),
    ]), "There are no images yet. A box brings its own."));
  }

  await read();
  page.follow((event) => event.kind.startsWith("image."), read, 30);
  page.setTitle("Images");
  return h("div", { class: "view" }, h("div", { class: "bar" }, h("h1", {}, "Images"), usage), page.may("image:write") && form, body);
}
