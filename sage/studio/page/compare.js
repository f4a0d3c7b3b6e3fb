// Before and after, one over the other, with a slider between them that the arrow keys move.

import {make, t} from "./base.js";

const KNOB = 16;  // pixels: half of what is taken hold of

export class Compare {
  constructor(at) {
    this.at = at;
    this.before = make("img", {className: "before", alt: ""});
    this.after = make("img", {className: "after", alt: ""});
    this.range = make("input", {type: "range", min: 0, max: 100, step: 1, value: 0});
    this.tags = [make("span", {className: "tag left"}), make("span", {className: "tag right"})];
    this.range.addEventListener("input", () => this.move(Number(this.range.value)));
    at.append(this.before, this.after, make("i"), ...this.tags, this.range);
  }

  move(share) {
    this.range.value = share;
    this.at.style.setProperty("--at", `${share}%`);
    const x = share / 100 * this.at.clientWidth, most = this.at.clientWidth - KNOB;
    this.at.style.setProperty("--in", `${Math.min(Math.max(x, KNOB), Math.max(most, KNOB)) - x}px`);  // it stays whole
    this.tags[0].hidden = share < 14;
    this.tags[1].hidden = share > 86;
  }

  /** Show a result from where it has changed; its source as a description of the picture before. */
  show({before, after, begins, source, target}) {
    this.at.hidden = false;
    this.at.classList.toggle("single", !before);
    this.at.classList.remove("working");
    this.tags[0].textContent = t("before");
    this.tags[1].textContent = t("after");
    this.range.setAttribute("aria-label", t("slider"));
    this.before.alt = before ? t("alt.before", {text: source}) : "";
    this.after.alt = t("alt.after", {text: target});
    this.before.hidden = !before;
    if (before) this.before.src = before;
    this.after.onload = () => this.fit();
    this.after.src = after;
    this.move(before ? Math.round(100 * begins) : 0);
  }

  /** Show a result in the place of the one before it, under the slider as it is. */
  follow(result) {
    const at = Number(this.range.value), single = this.at.classList.contains("single");
    this.show(result);
    this.move(single ? 0 : at);
  }

  /** Show what is there of a result that is being made. */
  emerge(before, glimpse) {
    this.at.hidden = false;
    this.at.classList.add("working", "single");
    this.before.hidden = !before;
    if (before && this.before.getAttribute("src") !== before) this.before.src = before;
    this.before.alt = "";
    this.after.alt = t("alt.glimpse");
    this.after.onload = () => this.fit();
    this.after.src = glimpse;
    this.move(0);
  }

  fit() {
    const {naturalWidth: w, naturalHeight: h} = this.after;
    this.at.style.setProperty("--aspect", w / h);
    this.at.classList.toggle("wide", w > h);
    this.at.classList.toggle("small", Math.max(w, h) < 600);
    this.move(Number(this.range.value));
  }
}
