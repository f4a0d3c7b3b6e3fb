// The settings of a method: two sliders, presets, and every field with its help and range, made from what the server says.

import {choice, know, label, make, named, said, t} from "./base.js";

const at = ({low, high, log}, share) =>
  Number((log ? low * (high / low) ** share : low + share * (high - low)).toPrecision(3));
const shareOf = ({low, high, log}, value) => Math.min(1, Math.max(0, log
  ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low)));
/** A range as the server says it, "0 to 1" or "1 or more". */
function range(text) {
  const [low, high] = text.replace(/ or more$/, "").split(" to ");
  return t(high === undefined ? "range.more" : "range.to", {low, high});
}

export class Form {
  /** `changed` is called when a value was changed by hand. */
  constructor({prefix, sliders, often, rest}, changed) {
    Object.assign(this, {prefix, sliders, often, rest, changed, shown: null, values: {}, recommended: {}, boxes: {}});
  }

  /** Show the form of a method; `values` in place of those that are recommended. */
  show(shown, values) {
    this.shown = shown;
    this.recommended = shown.values;
    this.values = {...shown.values, ...values};
    this.boxes = {};
    know(Object.keys(shown.values));
    this.drawSliders();
    const tiers = [true, false].map(often => shown.groups.map(([heading, fields]) =>
      [heading, fields.filter(f => f.often === often)]).filter(([, fields]) => fields.length));
    this.often.replaceChildren(...tiers[0].map(([heading, fields]) => this.section(heading, fields)));
    this.rest.replaceChildren(...tiers[1].map(([heading, fields]) => this.section(heading, fields)));
    this.write();
  }

  get kinds() {
    return Object.fromEntries(this.shown.groups.flatMap(([, fields]) => fields.map(f => [f.name, f.kind])));
  }

  /** What the form says of words, to be carried to another method. */
  get words() {
    return Object.fromEntries(Object.entries(this.kinds).filter(([, kind]) => ["phrases", "factors"].includes(kind))
      .map(([name]) => [name, this.values[name]]));
  }

  /** The values that differ from the recommended ones. */
  get changes() {
    return Object.fromEntries(Object.entries(this.values).filter(([name, value]) => value !== this.recommended[name]));
  }

  set(values) {
    Object.assign(this.values, values);
    this.write();
    this.changed();
  }

  section(heading, fields) {
    return make("section", {}, make("h3", {textContent: said(heading)}),
      make("div", {className: "fields"}, ...fields.map(f => this.field(f))));
  }

  field(f) {
    const id = `${this.prefix}-${f.name}`, help = named(said(f.help));
    const box = f.kind === "choice"
      ? make("select", {id}, ...f.choices.map(c => make("option", {value: c, textContent: choice(c)})))
      : f.kind === "switch" ? make("input", {id, type: "checkbox"})
      : make("input", {id, type: "text", autocomplete: "off", spellcheck: false,
                       inputMode: ["whole", "perhaps", "number"].includes(f.kind) ? "decimal" : "text"});
    box.setAttribute("aria-describedby", `${id}-help`);
    box.addEventListener("input", () => this.set({[f.name]: f.kind === "switch" ? box.checked : box.value}));
    this.boxes[f.name] = box;
    return make("div", {className: `field ${f.kind}`}, make("label", {htmlFor: id, textContent: label(f.name)}), box,
      make("p", {id: `${id}-help`, textContent: f.range ? t("range", {help, range: range(f.range)}) : help}));
  }

  drawSliders() {
    this.ranges = [];
    this.sliders.replaceChildren();
    for (const role of ["strength", "keep"]) {
      const span = this.shown[role];
      if (!span) continue;
      const id = `${this.prefix}-slider-${role}`, number = make("output", {htmlFor: id});
      const range = make("input", {type: "range", id, min: 0, max: 100, step: 1});
      range.addEventListener("input", () => this.set({[span.name]: String(at(span, range.value / 100))}));
      this.ranges.push([span, range, number]);
      this.sliders.append(make("div", {className: "slider"}, make("label", {htmlFor: id, textContent: t(role)}), range, number));
    }
    this.presets = Object.entries(this.shown.presets).map(([name, values]) => {
      const button = make("button", {type: "button", textContent: t(`preset.${name}`)});
      button.dataset.preset = name;
      button.addEventListener("click", () => this.set(values));
      return [values, button];
    });
    if (this.presets.length) {
      const row = make("div", {className: "presets", role: "group"}, ...this.presets.map(([, button]) => button));
      row.setAttribute("aria-label", t("presets"));
      this.sliders.append(row);
    }
  }

  /** The values into the boxes; what is being typed is left alone. */
  write() {
    for (const [name, box] of Object.entries(this.boxes)) {
      if (box.type === "checkbox") box.checked = this.values[name];
      else if (box.value !== this.values[name]) box.value = this.values[name];
    }
    for (const [span, range, number] of this.ranges) {
      const value = this.values[span.name];
      if (document.activeElement !== range) range.value = Math.round(100 * shareOf(span, Number(value)));
      number.textContent = value;
      range.setAttribute("aria-valuetext", value);
    }
    for (const [values, button] of this.presets)
      button.setAttribute("aria-pressed", Object.entries(values).every(([name, value]) => Number(value) === Number(this.values[name])));
  }
}
