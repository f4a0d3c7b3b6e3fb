// The two prompts word by word, what differs marked, with a weight for each word and what is said of phrases.

import {make, said, t, translated} from "./base.js";

const bare = word => word.replace(/^[,.;:!?"'()]+|[,.;:!?"'()]+$/g, "") || word;

export class Words {
  /** `write` is called with settings as text, by name; `take` with a target prompt. */
  constructor(at, write, take) {
    Object.assign(this, {at, write, take, value: null, opened: new Set()});
  }

  show(value) {
    this.value = value;
    const held = document.activeElement?.dataset?.word;
    this.at.replaceChildren();
    if (value.problem) return this.at.append(make("p", {className: "hint", textContent: translated(value.problem)}));
    if (!value.target?.length) return this.at.append(make("p", {className: "hint", textContent: t("words.none")}));
    this.meant(value.instructed);
    this.at.append(this.prompt("source", value.source), this.prompt("target", value.target));
    const seen = new Set();
    for (const [word, differs, factor] of value.factors ? value.target : []) {
      const name = bare(word);
      if (!(differs || factor !== 1 || this.opened.has(name)) || seen.has(name)) continue;
      seen.add(name);
      this.at.append(this.weight(name, factor));
    }
    this.at.append(...value.phrases.map(p => this.phrases(p)));
    if (value.factors) this.at.append(make("p", {className: "hint", textContent: t("words.click")}));
    if (held) [...this.at.querySelectorAll("[data-word]")].find(e => e.dataset.word === held)?.focus();
  }

  prompt(name, words) {
    const line = make("p", {className: "prompt"}, make("b", {textContent: `${t(`words.${name}`)}:`}));
    const weighed = name === "target" && this.value.factors, chips = [];
    for (const [word, differs] of words) {
      const chip = make(weighed ? "button" : "span", {textContent: word, className: differs ? "differs" : ""});
      if (weighed) {
        chip.type = "button";
        chip.title = t("words.weigh", {word: bare(word)});
        chip.tabIndex = chips.length ? -1 : 0;  // one stop for Tab, however many words
        chip.addEventListener("click", () => {
          this.opened.has(bare(word)) ? this.opened.delete(bare(word)) : this.opened.add(bare(word));
          this.show(this.value);
        });
        chips.push(chip);
      }
      line.append(" ", chip);
    }
    line.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], here = chips.indexOf(document.activeElement);
      if (!step || here < 0) return;
      event.preventDefault();
      const next = chips[(here + step + chips.length) % chips.length];
      chips[here].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    return line;
  }

  /** What an instruction in the place of a description is taken for. */
  meant(instructed) {
    if (instructed?.problem)
      this.at.append(make("p", {className: "meant", textContent: t("instruction.not", {why: translated(instructed.problem)})}));
    if (!instructed?.target) return;
    const take = make("button", {type: "button", textContent: t("instruction.take")});
    take.addEventListener("click", () => this.take(instructed.target));
    this.at.append(make("div", {className: "meant"}, make("span", {textContent: t("instruction")}),
      make("b", {textContent: instructed.target}), take));
  }

  weight(word, factor) {
    const number = make("output", {textContent: `× ${factor}`});
    const range = make("input", {type: "range", min: 0, max: 4, step: 0.1, value: factor});
    range.dataset.word = word;
    range.setAttribute("aria-label", t("words.weight", {word}));
    range.addEventListener("input", () => { number.textContent = `× ${range.value}`; });
    range.addEventListener("change", () => this.write({[this.value.factors]: this.factors(word, Number(range.value))}));
    return make("div", {className: "weight"}, make("span", {textContent: word}), range, number);
  }

  factors(changed, to) {
    const given = this.value.others ? [this.value.others] : [], seen = new Set();
    for (const [word, , factor] of this.value.target) {
      const name = bare(word), now = name === changed ? to : factor;
      if (now === 1 || seen.has(name)) continue;
      seen.add(name);
      given.push(`${name}:${now}`);
    }
    return given.join(", ") || "none";
  }

  phrases({name, title: english, value: now}) {
    const title = said(english);
    const pair = !["auto", "none"].includes(now), parts = pair ? now.split(",") : ["", ""];
    const choice = make("select");
    choice.setAttribute("aria-label", title);
    for (const [value, key] of [["auto", "auto"], ["none", "nothing"], ["pair", "these"]])
      choice.append(make("option", {value, textContent: t(`words.${key}`), selected: value === (pair ? "pair" : now)}));
    const fields = parts.map((text, i) => {
      const field = make("input", {type: "text", value: text.trim(), hidden: !pair});
      field.setAttribute("aria-label", t(`words.in ${i ? "target" : "source"}`, {title}));
      return field;
    });
    const both = () => this.write({[name]: fields.map(field => field.value.trim()).join(", ")});
    choice.addEventListener("change", () => {
      if (choice.value !== "pair") return this.write({[name]: choice.value});
      const first = this.value.pairs[0] || ["", ""];
      fields.forEach((field, i) => { field.hidden = false; field.value = first[i]; });
      both();
    });
    for (const field of fields) field.addEventListener("change", both);
    return make("div", {className: "phrases"}, make("span", {textContent: title}), choice, ...fields);
  }
}
