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
  const text = texts[language]?.[key] ?? texts.en?.[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

/** What the engine says, by its own templates: key, pattern, names of what stands in braces; the longest first. */
function templates() {
  const plain = text => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return engine ??= Object.entries(texts.en).filter(([key]) => key.startsWith("engine."))
    .sort(([, a], [, b]) => b.length - a.length).map(([key, text]) => {
      const parts = text.split(/\{(\w+)\}/);
      return [key, new RegExp(`^${parts.map((part, i) => i % 2 ? "(.+?)" : plain(part)).join("")}$`, "s"),
              parts.filter((_, i) => i % 2)];
    });
}

/** A note or an error of the engine, which speaks English, in the language of the page where it has the words. */
export function translated(said) {
  if (language === "en") return said;
  for (const [key, pattern, names] of templates()) {
    const found = pattern.exec(said);
    if (!found) continue;
    const inside = (name, value) => (name === "words" ? value.split(", ") : [value]).map(translated).join(", ");
    return t(key, Object.fromEntries(names.map((name, i) => [name, inside(name, found[i + 1])])));
  }
  return said;
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
