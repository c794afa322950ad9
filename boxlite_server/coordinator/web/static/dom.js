// Builds elements. Text always goes in as text: nothing here takes markup, since names and output come from boxes.

/**
 * Make an element. `properties`: `class`, `on` (listeners by event), `data` (data attributes), `style` (custom
 * properties and lengths), any property of the element that is not a string, and attributes for the rest; null, false
 * and undefined leave one out. `children`: nodes, texts, and arrays of them; null and false are left out.
 */
export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) set(element, name, value);
  add(element, children);
  return element;
}

/** Make an SVG element, with attributes alone. */
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  add(element, children);
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name === "class") element.className = value;
  else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
  else if (name === "data") Object.assign(element.dataset, value);
  else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
  else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
  else element.setAttribute(name, value === true ? "" : value);
}

function add(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(element, child);
    else if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

/** Replace the children of an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

/** Set the text of an element where it differs, so that selections and screen readers are left alone otherwise. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A button. `properties` as those of `h`. */
export function button(text, action, properties) {
  return h("button", { type: "button", on: { click: action }, ...properties }, text);
}

/** A label with its control, and perhaps a hint below it. */
export function field(label, control, hint) {
  const id = (control.id ||= `f${++fields}`);
  const described = hint && h("small", { id: `${id}-hint` }, hint);
  if (described) control.setAttribute("aria-describedby", described.id);
  return h("div", { class: "field" }, h("label", { for: id }, label), control, described);
}
let fields = 0;

/** A table with a caption for screen readers. `rows`: arrays of cells; a cell is a node, a text or null. */
export function table(caption, head, rows, empty) {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text || h("span", { class: "hidden" }, "Actions"))))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, cell)))))));
}

/** Show a message at the foot of the page for some seconds; an error stays until it is closed. */
export function tell(message, isError = false) {
  const toast = h("div", { class: isError ? "toast error" : "toast" }, h("span", {}, message));
  toast.append(button("Close", () => toast.remove(), { class: "quiet" }));
  document.getElementById(isError ? "alerts" : "messages").append(toast);
  if (!isError) setTimeout(() => toast.remove(), 6000);
}

/** Run `action` for a control, which is disabled meanwhile, and has the focus again where nothing else took it; a failure is
 * told. Returns whether it went well. */
export async function act(control, action) {
  control.disabled = true;
  control.setAttribute("aria-busy", "true");
  try {
    await action();
    return true;
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message, true);
    return false;
  } finally {
    control.disabled = false;
    control.removeAttribute("aria-busy");
    if (document.activeElement === document.body) control.focus();
  }
}

/** Ask a question in a dialog. Resolves to whether the answer was yes. */
export function confirm(question, detail, verb) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { class: "ask", "aria-labelledby": "question", on: { close: () => { dialog.remove(); resolve(dialog.returnValue === "yes"); } } },
      h("h2", { id: "question" }, question),
      detail && h("p", {}, detail),
      h("div", { class: "buttons" },
        button("Cancel", () => dialog.close("no"), { autofocus: true }),
        button(verb, () => dialog.close("yes"), { class: "danger" })));
    document.body.append(dialog);
    dialog.showModal();
  });
}
