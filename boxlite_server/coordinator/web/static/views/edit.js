// The form that changes a box: its name, labels, size and lifetimes.

import { button, field, fill, h, tell } from "../dom.js";

/** Open the form. Resolves when it is closed. */
export function editBox(view) {
  return new Promise((resolve) => {
    const { box } = view;
    const input = (properties) => h("input", { autocomplete: "off", spellcheck: "false", ...properties });
    const number = (value, min, max) => input({ type: "number", inputmode: "numeric", required: true, value: value ?? 0, min, max });
    const written = labelLines(box.labels || {});
    const controls = {
      name: input({ value: box.name || "", required: Boolean(box.name), pattern: "[a-zA-Z0-9][a-zA-Z0-9._\\-]*", maxlength: 128, title: "Letters, digits, dots, dashes and underscores" }),
      cpus: number(box.cpus, 1, 255),
      memory_mib: number(box.memory_mib, 128, 1048576),
      auto_stop: number(box.auto_stop, 0, 31536000),
      auto_delete: number(box.auto_delete, 0, 31536000),
      labels: h("textarea", { rows: 3, value: written ?? "", disabled: written === null, placeholder: "team=blue", spellcheck: "false" }),
    };
    const before = Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, control.value]));
    const read = { name: String, labels, cpus: Number, memory_mib: Number, auto_stop: Number, auto_delete: Number };
    const problem = h("p", { class: "problem", role: "alert" });
    const submit = h("button", { type: "submit", class: "primary" }, "Save");

    async function send(event) {
      event.preventDefault();
      fill(problem);
      submit.disabled = true;
      try {
        const changed = Object.entries(controls).filter(([name, control]) => control.value !== before[name]);
        if (changed.length) {
          view.take(await view.api.patch(view.path, Object.fromEntries(changed.map(([name, control]) => [name, read[name](control.value)]))));
          tell(`${view.label} is changed.`);
        }
        dialog.close();
      } catch (error) {
        fill(problem, error.message);
      } finally {
        submit.disabled = false;
      }
    }

    const dialog = h("dialog", { "aria-labelledby": "edit-title", on: { close: () => { dialog.remove(); resolve(); } } },
      h("form", { on: { submit: send } },
        h("h2", { id: "edit-title" }, `Change ${view.label}`),
        h("div", { class: "fields" },
          field("Name", controls.name), field("CPUs", controls.cpus), field("Memory in MiB", controls.memory_mib),
          field("Stop when idle for", controls.auto_stop, "Seconds; 0 means never"),
          field("Remove when stopped for", controls.auto_delete, "Seconds; 0 means never"),
          field("Labels", controls.labels, written === null ? "A label of this box has line breaks: change them over the API." : "One KEY=VALUE in each line")),
        h("p", { class: "muted" }, view.isUp ? "A running box has its new size at once." : "The box has its new size when it is started."),
        problem,
        h("div", { class: "buttons" }, button("Cancel", () => dialog.close()), submit)));
    document.body.append(dialog);
    dialog.showModal();
    controls.name.focus();
  });
}

/** Labels as lines; null where lines cannot say them. */
function labelLines(found) {
  const entries = Object.entries(found);
  if (entries.some(([key, value]) => !key || /[=\r\n]/.test(key) || /[\r\n]/.test(value))) return null;
  return entries.map(([key, value]) => `${key}=${value}`).join("\n");
}

function labels(text) {
  return Object.fromEntries(text.split("\n").filter((line) => line.trim()).map((line) => {
    const equals = line.indexOf("=");
    if (equals < 1) throw new Error(`Labels: “${line}” is not KEY=VALUE.`);
    return [line.slice(0, equals), line.slice(equals + 1)];
  }));
}
