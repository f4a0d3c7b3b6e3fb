// The page of the API: what it says of itself, and what it does now.

import {$, ask, loadTexts, make, said, t} from "./base.js";

const NEWLINE = "\n";

function schema(part, all) {
  const named = part?.$ref?.split("/").pop();
  return named ? Object.entries(all[named].properties ?? {}).map(([name, p]) =>
    `${name}${(all[named].required ?? []).includes(name) ? "" : "?"}`).join(", ") : "";
}

function operation(path, verb, about, all) {
  const body = about.requestBody?.content, [kind] = Object.keys(body ?? {});
  const given = [...(about.parameters ?? []).filter(p => p.in === "query").map(p => `?${p.name}=`),
                 ...(kind === "application/json" ? [`{${schema(body[kind].schema, all)}}`] : kind ? [t("api.file")] : [])];
  return make("div", {className: "operation"}, make("p", {}, make("b", {textContent: verb.toUpperCase()}), " ",
    make("code", {textContent: path}), " ", make("code", {textContent: given.join(" ")})),
    make("p", {className: "hint", textContent: said(about.description ?? "")}));
}

async function now() {
  const status = await ask("GET", "api/status");
  const rows = {model: status.model, "api.models": status.models.join(", "), "api.working": status.queue.working,
                "api.waiting": t("api.queue", status.queue), "api.version": status.version};
  $("now").replaceChildren(...Object.entries(rows).flatMap(([name, value]) =>
    [make("dt", {textContent: t(name)}), make("dd", {textContent: value})]));
}

/** A text with elements in the place of what stands in braces. */
const around = (key, elements) => t(key).split(/\{(\w+)\}/).map((part, i) => i % 2 ? elements[part] : part);

async function begin() {
  await loadTexts();
  $("hint").replaceChildren(...around("api.hint", {error: make("code", {textContent: "error"}),
    description: make("a", {href: "api/openapi.json", textContent: "api/openapi.json"})}));
  const description = await ask("GET", "api/openapi.json"), here = location.origin + location.pathname;
  $("about").textContent = said(description.info.description);
  $("sketch").textContent = [`curl -c jar -b jar --data-binary @mug.png -H 'content-type: application/octet-stream' '${here}api/pictures?name=mug.png'`,
    `curl -c jar -b jar --json '{"picture": "...", "source": "a red mug", "target": "a blue mug"}' ${here}api/edit`,
    `curl -c jar -b jar ${here}api/jobs/...`, `curl -c jar -b jar -o edit.png ${here}api/results/...`].join(NEWLINE);
  for (const [path, verbs] of Object.entries(description.paths))
    for (const [verb, about] of Object.entries(verbs))
      $("paths").append(operation(path, verb, about, description.components?.schemas ?? {}));
  await now();
  setInterval(() => now().catch(() => {}), 2000);
}

begin();
