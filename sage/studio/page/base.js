// What all parts of the page share: elements, texts, requests.

export const $ = id => document.getElementById(id);

/** An element with properties and what is inside it; text goes in as text, never as markup. */
export function make(tag, properties = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

// ---- texts

let texts = {}, language = "en", engine = null;

export const languages = () => Object.entries(texts).map(([code, all]) => [code, all.name]);

export async function loadTexts() {
  texts = await (await fetch("page/texts.json")).json();
  let wanted = navigator.language.slice(0, 2);
  try { wanted = localStorage.getItem("sage-language") || wanted; } catch { /* no storage: the browser's language */ }
  speak(wanted);
}

/** Show the page in a language. */
export function speak(wanted, kept = false) {
  language = wanted in texts ? wanted : "en";
  engine = null;
  if (kept) try { localStorage.setItem("sage-language", language); } catch { /* until the page is left */ }
  document.documentElement.lang = language;
  for (const at of document.querySelectorAll("[data-text]")) at.textContent = t(at.dataset.text);
  for (const at of document.querySelectorAll("[data-hint]")) at.placeholder = t(at.dataset.hint);
  for (const at of document.querySelectorAll("[data-label]")) at.setAttribute("aria-label", t(at.dataset.label));
  for (const at of document.querySelectorAll("[data-title]")) at.title = t(at.dataset.title);
}

export const spoken = () => language;

/** A text in the language of the page, with what stands in braces filled in. */
export function t(key, values = {}) {
  return filled(texts[language]?.[key] ?? texts.en?.[key] ?? key, values);
}

const filled = (text, values) => text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);

// ---- what is written in the code of the server, in English: each language has other words for it under "said", English
// only where the page has a word of its own for what a terminal calls otherwise

const table = name => texts[language]?.[name] ?? {};
const settings = new Set(["width", "height"]);  // names that are taken for settings where they are said

/** Names of settings, for which there are labels on the page. */
export function know(names) { for (const name of names) settings.add(name); }

const plain = name => (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");

/** What stands at a setting, and at one of its choices. */
export const label = name => table("settings")[name] ?? plain(name);
export const choice = value => table("choices")[value] ?? value;

/** A help, a heading or another text that is said as it is. */
export const said = text => table("said")[text] ?? text;

/** A text that names settings as in a terminal, `alpha`, guidance_scale, fit=keep, with their labels instead. */
export const named = text => text.replace(/`(\w+)`|\b([a-z]\w*)=(\w+)|\b[a-z]+_\w+/g, (all, ticked, given, value) =>
  !settings.has(ticked ?? given ?? all) ? all : quoted(value ? `${label(given)}: ${choice(value)}` : label(ticked ?? all)));
const quoted = text => t("quoted", {text});

/** What the engine says, by its templates: text, pattern, names of what stands in braces; the longest first. */
function templates() {
  const exact = text => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return engine ??= Object.keys(table("said")).filter(text => text.includes("{")).sort((a, b) => b.length - a.length)
    .map(text => {
      const parts = text.split(/\{(\w+)\}/);
      return [text, new RegExp(`^${parts.map((part, i) => i % 2 ? "(.+?)" : exact(part)).join("")}$`, "s"),
              parts.filter((_, i) => i % 2)];
    });
}

const AND = /(, | and )/, BETWEEN = {words: AND, wrong: AND, settings: AND, savings: /(; )/};  // what stands in lists

function inside(name, value) {
  if (name === "setting") return quoted(label(value));
  if (!(name in BETWEEN)) return translated(value);
  return value.split(BETWEEN[name]).map((part, i) => i % 2 === 0 ? translated(part) : part === " and " ? ` ${t("and")} ` : part).join("");
}

/** A note or an error of the engine, which speaks English and to a terminal, in the words of the page where it has them. */
export function translated(text) {
  if (text in table("said")) return named(said(text));
  for (const [key, pattern, names] of templates()) {
    const found = pattern.exec(text);
    if (!found || names.some((name, i) => name === "setting" && !settings.has(found[i + 1]))) continue;
    const values = Object.fromEntries(names.map((name, i) => [name, inside(name, found[i + 1])]));
    return filled(named(said(key)), values);
  }
  return named(text);
}

/** Whether there is such a text. */
export const hasText = key => !!texts.en?.[key];

export const seconds = s => s < 59.5 ? t("seconds", {n: s < 9.95 ? s.toFixed(1) : Math.round(s)})
  : t("minutes", {m: Math.floor(s / 60), n: Math.round(s % 60)});

// ---- requests

export class Refused extends Error {}  // the server said why
export class Lost extends Error {}  // nobody answered

/** Ask the server; its answer as JSON. */
export async function ask(method, path, body) {
  const options = {method, headers: {}};
  if (body instanceof Blob) {
    options.body = body;
    options.headers["content-type"] = "application/octet-stream";
  }
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  let answer;
  try { answer = await fetch(path, options); } catch { throw new Lost(path); }
  if (answer.ok) return answer.json();
  const said = await answer.text();
  let error = said;
  try { error = JSON.parse(said).error ?? said; } catch { /* plain text */ }
  throw new Refused(error);
}

export const later = ms => new Promise(done => setTimeout(done, ms));
