// The form for a new box.

import { nonce } from "../api.js";
import { button, field, fill, h, tell } from "../dom.js";
import { words } from "../format.js";

/** Open the form; `onMade(box)` is called with the box that it made. */
export async function openCreate(page, onMade) {
  const [config, images] = await Promise.all([
    page.api.get("config"),
    page.may("image:read") ? page.api.get("images").catch(() => null) : null,
  ]);
  new Form(page, config, images?.images || [], onMade).open();
}

class Form {
  constructor(page, config, images, onMade) {
    const { defaults, capabilities } = config;
    this.page = page;
    this.onMade = onMade;
    this.attempt = nonce(); // so that a box is made once, however often it is asked
    const input = (properties) => h("input", { autocomplete: "off", spellcheck: "false", ...properties });
    const number = (properties) => input({ type: "number", inputmode: "numeric", ...properties });
    this.image = input({ list: "images", placeholder: "alpine:latest", required: true, maxlength: 512 });
    this.name = input({ placeholder: "chosen by you, or none", pattern: "[a-zA-Z0-9][a-zA-Z0-9._\\-]*", maxlength: 128, title: "Letters, digits, dots, dashes and underscores" });
    this.cpus = number({ min: 1, max: capabilities.max_cpus || 255, placeholder: defaults.cpus });
    this.memory = number({ min: 128, max: capabilities.max_memory_mib || 1048576, placeholder: defaults.memory_mib });
    this.disk = capabilities.disk_limits?.length ? number({ min: 1, max: 65536, placeholder: defaults.disk_size_gb || "no limit" }) : null;
    this.command = input({ placeholder: "the image's own" });
    this.env = h("textarea", { rows: 3, placeholder: "NAME=value", spellcheck: "false" });
    this.ports = input({ placeholder: "8080, 5353/udp" });
    this.labels = input({ placeholder: "team=blue, job=nightly" });
    this.network = h("select", {}, h("option", { value: "" }, "On"), h("option", { value: "disabled" }, "Off"));
    this.stop = number({ min: 0, max: 31536000, placeholder: defaults.auto_stop || "never" });
    this.remove = number({ min: 0, max: 31536000, placeholder: defaults.auto_delete || "never" });
    this.start = h("input", { type: "checkbox", checked: true });
    this.problem = h("div", { role: "alert" });
    this.submit = h("button", { type: "submit", class: "primary" }, "Create");
    this.dialog = h("dialog", { class: "create", "aria-labelledby": "create-title", on: { close: () => this.dialog.remove() } }, this.form(images));
  }

  form(images) {
    return h("form", { on: { submit: (event) => this.send(event) } },
      h("h2", { id: "create-title" }, "New box"),
      h("datalist", { id: "images" }, images.map((image) => h("option", { value: image.reference }))),
      h("div", { class: "fields" },
        field("Image", this.image), field("Name", this.name),
        field("CPUs", this.cpus), field("Memory in MiB", this.memory),
        this.disk && field("Disk in GB", this.disk)),
      h("label", { class: "check" }, this.start, "Start it at once"),
      h("details", {}, h("summary", {}, "More settings"),
        h("div", { class: "fields" },
          field("Command", this.command, "Words as in a shell, with quotes; no shell reads them."),
          field("Labels", this.labels, "KEY=VALUE, separated by commas"),
          field("Environment", this.env, "One NAME=value in each line"),
          field("Published ports", this.ports, "Ports in the box"),
          field("Network", this.network),
          field("Stop when idle for", this.stop, "Seconds; 0 means never"),
          field("Remove when stopped for", this.remove, "Seconds; 0 means never"))),
      this.problem,
      h("div", { class: "buttons" }, button("Cancel", () => this.dialog.close()), this.submit));
  }

  open() {
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.image.focus();
  }

  request() {
    const number = (control) => (control?.value ? Number(control.value) : undefined);
    return {
      image: this.image.value.trim(),
      name: this.name.value.trim() || undefined,
      cpus: number(this.cpus),
      memory_mib: number(this.memory),
      disk_size_gb: number(this.disk),
      cmd: this.command.value.trim() ? words(this.command.value) : undefined,
      env: pairs(this.env.value.split("\n"), "Environment"),
      labels: pairs(this.labels.value.split(","), "Labels"),
      ports: ports(this.ports.value),
      network: this.network.value ? { mode: this.network.value } : undefined,
      auto_stop: number(this.stop),
      auto_delete: number(this.remove),
      start: this.start.checked,
    };
  }

  async send(event) {
    event.preventDefault();
    fill(this.problem);
    this.submit.disabled = true;
    this.submit.textContent = "Creating …";
    try {
      const box = await this.page.api.post("boxes", this.request(), { headers: { "Idempotency-Key": this.attempt } });
      this.onMade(box);
      tell(`${box.name || box.box_id} is ${box.status === "running" ? "running" : "made"}.`);
      this.dialog.close();
    } catch (error) {
      const title = error.status === 503 ? "No worker takes this box" : error.status === 429 ? "There is no room" : "The box was not made";
      fill(this.problem, h("div", { class: "problem" }, h("strong", {}, title), h("p", {}, error.message)));
      if (error.status && error.status !== 503) this.attempt = nonce();
    } finally {
      this.submit.disabled = false;
      this.submit.textContent = "Create";
    }
  }
}

function pairs(texts, what) {
  const found = {};
  for (const text of texts.map((text) => text.trim()).filter(Boolean)) {
    const equals = text.indexOf("=");
    if (equals < 1) throw new Error(`${what}: “${text}” is not KEY=VALUE.`);
    found[text.slice(0, equals)] = text.slice(equals + 1);
  }
  return Object.keys(found).length ? found : undefined;
}

function ports(text) {
  const found = text.split(/[\s,]+/).filter(Boolean).map((word) => {
    const match = /^(?:(\d+):)?(\d+)(?:\/(tcp|udp))?$/.exec(word);
    if (!match) throw new Error(`Published ports: “${word}” is not a port, such as 8080, 80:8080 or 53/udp.`);
    return { guest_port: Number(match[2]), host_port: match[1] ? Number(match[1]) : undefined, protocol: match[3] };
  });
  return found.length ? found : undefined;
}
