// What happens on the page.

import {$, Lost, Refused, ask, hasText, label, later, languages, loadTexts, make, said, seconds, speak, spoken, t, translated} from "./base.js";
import {Boxes} from "./boxes.js";
import {Brush} from "./brush.js";
import {Compare} from "./compare.js";
import {Form} from "./form.js";
import {Live} from "./live.js";
import {Words} from "./words.js";

const POLL = 250, LOST = 2000, SOON = 400;  // milliseconds
const LITTLE = 0.05;  // seconds: a method without an inversion spares none
const KEPT = ["live", "model", "picture", "mask", "moves", "result", "job", "asked", "filled", "given", "loading"];
const TASKS = {
  edit: {pane: "pane-edit", menu: "method", about: "method-about", go: "edit", cancel: "cancel", sliders: "sliders"},
  generate: {pane: "pane-generate", menu: "make-method", about: "make-about", go: "make", cancel: "make-cancel",
             sliders: "make-sliders"},
};

// `live`: whether edits follow what is typed, null as the method has it; `stood`: how all was before a change by hand.
// `filled`: the source prompt is of an example, an earlier edit or what was seen, and `given` the target that came with it.
// `asked`: what is being made, as under a result.  `model`: by which the page goes, perhaps not the one in memory; `loading`:
// which was chosen last.
const page = {task: "edit", model: "", loading: "", picture: null, mask: null, moves: [], result: null, job: null, asked: null, filled: false, given: "", following: 0, results: [],
              past: [], left: {edit: {}, generate: {}}, methods: {edit: [], generate: []}, settled: false, live: null, stood: null};
const compare = new Compare($("compare"));
const forms = Object.fromEntries(Object.entries(TASKS).map(([task, {sliders}]) => [task, new Form(
  {prefix: task === "edit" ? "set" : "make-set", sliders: $(sliders), often: make("div", {className: "settings"}),
   rest: make("div", {className: "settings"})}, () => { changed(); follows(task); })]));
const words = new Words($("words"), values => forms.edit.set(values), target => { $("target").value = target; changed(); follows("edit"); });
const brush = new Brush(error => fail(error)), boxes = new Boxes();

// ---- what is said

/** Say something, and under it further lines; what is out of sight is brought into it, unless all is to stand `still`. */
function say(text, kind = "done", more = [], still = false) {
  $("status").hidden = !text;
  $("status").className = `status ${kind}`;
  $("status").setAttribute("role", kind === "error" ? "alert" : "status");
  $("status").replaceChildren(text, ...more.length ? [make("ul", {}, ...more.map(line => make("li", {textContent: line})))] : []);
  if (text && !still) $("status").scrollIntoView({block: "nearest"});
}

function fail(error, still = false) {
  if (!(error instanceof Refused || error instanceof Lost)) console.error(error);
  say(error instanceof Lost ? t("lost") : translated(error.message), "error", [], still);
}

/** A handler whose errors are said. */
const told = work => async (...given) => { try { return await work(...given); } catch (error) { fail(error); } };

// ---- what is kept over a reload

function keep() {
  if (!page.settled) return;  // what was kept is not yet taken up
  const held = {task: page.task, left: page.left, past: page.past, source: $("source").value, target: $("target").value,
                prompt: $("prompt").value, negative: $("negative").value, truncate: $("truncate").checked,
                paste: $("paste").checked,
                forms: Object.fromEntries(Object.entries(forms).map(([task, form]) =>
                  [task, form.shown && {method: form.shown.method, values: form.values}]))};
  for (const name of KEPT) held[name] = page[name];
  try { sessionStorage.setItem("sage", JSON.stringify(held)); } catch { /* nothing is kept */ }
}

function kept() {
  try { return JSON.parse(sessionStorage.getItem("sage")); } catch { return null; }
}

// ---- methods and settings

const form = () => forms[page.task];

/** What is asked about the methods is asked of the page's model, which need not be the one in memory. */
const ofMethods = (task, name = "") =>
  ask("GET", `api/methods${name && `/${encodeURIComponent(name)}`}?task=${task}&model=${encodeURIComponent(page.model)}`);

async function loadMethods() {
  for (const [task, {menu}] of Object.entries(TASKS)) {
    page.methods[task] = await ofMethods(task);
    $(menu).replaceChildren(...page.methods[task].map(m => make("option", {value: m.name, textContent: `${said(m.title)} (${m.name})`})));
  }
}

/** Show a method's form; `values` beside those that are recommended. */
async function showMethod(task, name, values = {}) {
  const shown = await ofMethods(task, name);
  const known = page.methods[task].find(m => m.name === name);
  forms[task].show(shown, values);
  $(TASKS[task].menu).value = name;
  $(TASKS[task].about).textContent = known ? said(known.about) : "";
  if (task === "edit") {
    showMask();
    const axes = ["strength", "keep"].filter(role => shown[role]).map(role => [role, shown[role].name]);
    $("live").checked = page.live ?? shown.live;
    axes.push(["method", "method"]);
    if (shown.random) axes.push(["seed", "seed"]);
    $("axis").replaceChildren(...axes.map(([key, value]) => make("option", {value, textContent: t(`axis.${key}`)})));
  }
  showTier();
  changed();
}

function showTier() {
  $("often").replaceChildren(form().often);
  $("rest").replaceChildren(form().rest);
  $("rest-part").hidden = !form().rest.childElementCount;
}

/** Another method: its settings as they were left, else as recommended; what is said of words goes along. */
const methodChosen = told(async task => {
  const form = forms[task], name = $(TASKS[task].menu).value, said = form.words;
  page.left[task][form.shown.method] = form.values;
  const shown = await ofMethods(task, name);
  const along = Object.fromEntries(Object.entries(said).filter(([field]) => field in shown.values));
  await showMethod(task, name, {...page.left[task][name], ...along});
  say("");
  follows(task);
});

/** What differs between the prompts, and what is made of an instruction. */
const compared = (source = $("source").value, target = $("target").value) => ask("POST", "api/words",
  {source, target, model: page.model, method: forms.edit.shown.method, settings: forms.edit.changes});

let comparing = 0;

/** The prompts or settings were changed: show what differs, and keep it. */
function changed() {
  keep();
  const mine = ++comparing;
  setTimeout(async () => {
    if (mine !== comparing || !forms.edit.shown) return;
    try {
      const found = await compared();
      if (mine === comparing) words.show(found);
    } catch (error) {
      if (error instanceof Refused && mine === comparing) words.show({problem: error.message});
    }
  }, 200);
}

// ---- edits that follow what is typed

/** Whether the target begins as the source does: it is a description then, and nobody has to be asked. */
const typedOver = (source, target) => source.trim().split(/\s+/, 2).join(" ") === target.trim().split(/\s+/, 2).join(" ");

const live = new Live({
  /** What is to be edited: an instruction as the description that it stands for; null while there is nothing to edit. */
  async asked() {
    const source = $("source").value, target = $("target").value;
    if (page.job || !page.picture || !source.trim() || !target.trim()) return null;
    const {instructed} = typedOver(source, target) ? {} : await compared(source, target);
    if (instructed?.problem) return null;
    return {...editAsked(), target: instructed?.target || target};
  },
  show(result) {
    page.results = [result, ...page.results];
    page.result = result.result;
    compare.follow({before: page.picture?.url || result.before, after: result.after, begins: 0, source: result.source, target: result.target});
    showCaption(result);
    actions(result);
    const [text, kind, notes] = story(result);
    say(text, kind, notes, true);
    keep();
  },
  say: error => fail(error, true),
  /** A job that takes long enough to be told of; null when all is done. */
  work(job) {
    if (job) return progress(job);
    if (!page.job) $("progress").hidden = true;
    loadResults().catch(fail);
  },
});

/** A change by hand, which an edit follows where that is asked for; the first of several can be undone. */
function follows(task) {
  if (task !== "edit" || !$("live").checked || !page.picture || page.job) return;
  if (!live.running && page.stood) remember(page.stood);
  live.change();
}

// ---- the picture

function showPicture(picture) {
  const other = picture?.picture !== page.picture?.picture;
  page.picture = picture;
  if (other) { page.mask = null; page.moves = []; }
  $("thumb").hidden = !picture;
  $("drop-words").hidden = !!picture;
  $("thumb").classList.toggle("small", true);
  if (picture) $("thumb").src = picture.url;
  $("thumb").alt = picture ? t("alt.picture", {name: picture.name}) : "";
  $("picture-name").textContent = picture ? `${picture.name}, ${picture.width} × ${picture.height}` : t("no picture");
  showMask();
  keep();
}

const reads = what => !!forms.edit.shown?.reads.includes(what);
const moving = () => reads("moves") ? page.moves : [];

/** What is said of places: where the picture may change, what is moved. */
function showMask() {
  const used = page.mask && reads("mask"), moved = moving().length > 0, {picture} = page;
  $("unmask").hidden = !used && !moved;
  $("paste-part").hidden = !used;
  $("brush").hidden = !picture || !reads("mask");
  $("move").hidden = !picture || !canDo("moves");
  $("move").textContent = t($("move").dataset.text = moved ? "move.another" : "move");
  $("put-part").hidden = !picture || !canDo("mask");
  if (!picture) return;
  $("picture-name").textContent = [...moved ? [t(moving().length > 1 ? "moved.parts" : "moved", {count: moving().length})] : [], ...used ? [t("masked")] : []].join(" ") || `${picture.name}, ${picture.width} × ${picture.height}`;
  $("thumb").alt = t(used ? "alt.masked" : "alt.picture", {name: picture.name});
}

const canDo = what => page.methods.edit.some(m => m.reads.includes(what));

/** Go on with a method that reads what was given: the one that is there, else the usual one, else the first. */
async function withReader(what, usual) {
  if (reads(what)) return;
  const able = page.methods.edit.filter(m => m.reads.includes(what)).map(m => m.name);
  page.left.edit[forms.edit.shown.method] = forms.edit.values;
  await showMethod("edit", able.includes(usual) ? usual : able[0]);
}

/** A box, and where it shall be, beside those before: the prompts are one and the same, unless something else is to change too. */
const movePart = told(async () => boxes.open(page.picture, "move", ["move.from", "move.to"], told(async ([from, to]) => {
  remember();
  page.moves = [...moving(), [from, to]];
  await withReader("moves", page.usual.drag);
  if (!$("source").value.trim()) $("source").value = "a photograph";
  $("target").value = $("source").value;
  showMask();
  changed();
  say(t("move.done"));
}), moving().filter(pair => pair.every(Array.isArray))));

/** Something of another picture: painted over there, and put into a box of this one. */
const putIn = told(async file => {
  if (!file || !page.picture) return;
  const other = await brought(file, `api/masks?name=${encodeURIComponent(file.name)}`);
  say("");
  brush.open(other, mask => boxes.open(page.picture, "put", ["put.where"], told(async ([box]) => {
    remember();
    const got = await ask("POST", "api/compose", {picture: page.picture.picture, reference: other.picture, mask: mask.picture, box});
    await withReader("mask", page.usual.compose);
    showPicture(got);
    page.mask = got.mask;
    $("paste").checked = true;
    showMask();
    showAlone(got, `${got.url}/file`);
    if (!$("source").value.trim()) $("source").value = "a photograph";
    changed();
    say(t("put.done"));
  })), "put");
});

/** A file to the server; what takes a while is said. */
async function brought(file, path) {
  if (file.size > page.limits.upload)
    throw new Refused(t("large", {name: file.name, most: Math.floor(page.limits.upload / 1e6)}));
  const soon = setTimeout(() => say(t("bringing", {name: file.name})), SOON);
  try { return await ask("POST", path, file); } finally { clearTimeout(soon); }
}

/** A picture alone, before anything is made of it; `file`: where it can be had. */
function showAlone(picture, file = "") {
  page.result = null;
  compare.show({before: "", after: picture.url, begins: 0, source: "", target: picture.name});
  $("caption").replaceChildren();
  actions(null);
  pressed();
  $("download").hidden = !file;
  $("download").href = file;
  $("download").download = picture.name;
}

const bring = told(async file => {
  if (!file) return;
  const got = await brought(file, `api/pictures?name=${encodeURIComponent(file.name)}`);
  remember();
  const {record} = got;
  if (record && record.task === "edit") { showAlone(got); return restore(record, got, "name"); }
  showPicture(got);
  showAlone(got);
  const scaled = got.scaled ? [t("scaled", {size: got.scaled})] : [];
  if (record) {
    describe(record.target, "");
    return say(t("made of text"), "done", scaled);
  }
  if (page.filled) describe("", page.given ? "" : $("target").value, "");  // they were of another picture
  const {source, note} = await ask("GET", `${got.url}/seen`);
  if (page.job || page.picture !== got) return;  // something else was asked for meanwhile
  if (source && !$("source").value) describe(source, $("target").value, page.given);
  const [first, ...more] = [...scaled, ...note ? [`${sentence(note)} ${t("brought")}`] : [t(source && page.filled ? "described" : "brought")]];
  say(first, note || got.scaled ? "note" : "done", more);
});

function sentence(note) {
  const text = translated(note);
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

/** Prompts that the visitor did not write, but perhaps the target. */
function describe(source, target, given = target) {
  $("source").value = source;
  $("target").value = target;
  page.filled = true;
  page.given = given;
  changed();
}

/** The prompts, method and settings of a record again, and what is to be said of that; `how` is "name" for one from a file,
 *  and where the page is to stand `still` only what is unusual is said. */
async function restore(record, picture, how, still = false) {
  const there = await goBy(record);
  if (!there) return;  // it was cancelled, or could not be loaded, and that is said
  const {task} = record, fits = page.methods[task].some(m => m.name === record.form.method);
  select(task);
  if (task === "generate") {
    $("prompt").value = record.target;
    $("negative").value = record.negative;
    [$("width").value, $("height").value] = record.size;
  } else {
    describe(record.source, record.target);
    $("truncate").checked = record.truncate;
    if (picture) showPicture(picture);
    page.mask = record.mask || null;
    page.moves = record.moves;
    $("paste").checked = record.paste;
  }
  await showMethod(task, fits ? record.form.method : page.usual[task], fits ? record.form.values : {});
  const notes = [...there];
  if (!record.here) notes.push(t("restored.model", {model: record.model}));
  if (!fits) notes.push(t("restored.method", {method: record.form.method, model: page.model}));
  if (record.edits.length) notes.push(t("restored.edits", {also: record.edits.join("; ")}));
  if (record.prediction) notes.push(t("restored.prediction", {prediction: record.prediction}));
  if (still) return notes.length && say(notes.join(" "), "note", [], still);
  const first = [how === "name" && task === "edit" ? t("restored.name", {name: record.picture.name}) : t("restored")];
  if (task === "edit" && picture && !record.pictured)
    first.push(t(how === "name" ? "restored.drop" : "restored.gone", {name: [record.picture.name, ...record.references].join(", ")}));
  say([...first, ...notes].join(" "), notes.length ? "note" : "done");
}

// ---- results

/** Show a result, with the prompts that made it. */
function showResult(result) {
  page.result = result.result;
  compare.show(result);
  showCaption(result);
  actions(result);
  pressed();
  keep();
}

/** Which of the results is seen. */
function pressed() {
  for (const button of document.querySelectorAll("[data-result]"))
    button.setAttribute("aria-pressed", button.dataset.result === page.result);
}

/** The prompts that make what is seen. */
function showCaption({task, source, target, method, model}) {
  const rows = task === "edit" ? [["words.source", source], ["words.target", target]] : [["words.target", target]];
  $("caption").replaceChildren(make("dl", {}, ...[...rows, ["method", `${method}, ${model}`]].flatMap(([key, text]) =>
    [make("dt", {textContent: t(key)}), make("dd", {textContent: text})])));
}

function actions(result) {
  $("empty").hidden = true;
  for (const name of ["download", "use", "command", "python"]) $(name).hidden = !result;
  $("look").hidden = !result || result.task !== "edit";
  if (!result) return;
  $("download").href = result.url;
  $("download").download = result.name;
}

function thumb(result, text, chosen) {
  const button = make("button", {type: "button"}, make("img", {src: result.after, alt: t("alt.after", {text: result.target}), className: "small"}));
  if (text) button.append(make("span", {textContent: text}));
  button.dataset.result = result.result;
  button.setAttribute("aria-pressed", result.result === page.result);
  button.addEventListener("click", told(() => chosen(result)));
  return button;
}

async function loadResults() {
  const found = await ask("GET", "api/results");
  page.results = found.results;
  $("history-part").hidden = !found.results.length;
  $("history").replaceChildren(...found.results.map(result => make("li", {}, thumb(result, "", async r => {
    remember();
    const {record, picture} = await ask("POST", `api/results/${r.result}/restore`);
    showResult(r);
    await restore(record, picture, "");
  }))));
  const kept = await ask("GET", "api/gallery");
  $("gallery-part").hidden = !kept.length;
  $("gallery").replaceChildren(...kept.map(({name, url}) => {
    const button = make("button", {type: "button"}, make("img", {src: url, alt: name, className: "small", loading: "lazy"}));
    button.addEventListener("click", told(async () => {
      remember();
      const got = await ask("POST", url);
      showAlone({url, name}, url);
      if (got.record) showCaption({...got.record, method: got.record.form.method});
      if (got.record) await restore(got.record, got, "name"); else showPicture(got);
    }));
    return make("li", {}, button);
  }));
  return found;
}

// ---- undo

const snapshot = () => ({model: page.model, picture: page.picture, mask: page.mask, moves: page.moves, filled: page.filled, given: page.given, source: $("source").value, target: $("target").value,
  method: forms.edit.shown?.method, values: forms.edit.values, result: page.result});

/** What Undo will come back to. */
function remember(then = snapshot()) {
  page.past.push(then);
  page.past = page.past.slice(-30);
  $("undo").disabled = false;
}

const undo = told(async () => {
  const then = page.past.pop();
  $("undo").disabled = !page.past.length;
  if (!then) return;
  const there = await goBy({model: then.model ?? page.model, here: true});
  if (!there) return;
  describe(then.source, then.target);
  page.filled = then.filled;
  page.given = then.given;
  if (then.method) await showMethod("edit", then.method, then.values);
  showPicture(then.picture);
  page.mask = then.mask;
  page.moves = then.moves;
  showMask();
  const result = page.results.find(r => r.result === then.result);
  if (result) showResult(result); else if (then.picture) showAlone(then.picture);
  $("grid").hidden = true;
  if (!result && $("live").checked) live.change();
  say([t("undone"), ...there.length ? [t("undone.model", {model: page.model})] : []].join(" "));
});

// ---- work

function busy(on) {
  for (const {go, cancel} of Object.values(TASKS)) { $(go).disabled = on; $(cancel).disabled = !on; }
  $("vary").disabled = $("look").disabled = on;
  if (!on) $("progress").hidden = true;
}

function progress(state) {
  let text = t(state.phase ? `phase.${state.phase}` : "phase");
  if (state.again) text = t("again", {phase: text});
  if (state.total > 1) text = t("step", {phase: text, done: state.done, total: state.total});
  if (state.parts > 1) text = t("part", {text, part: state.part, parts: state.parts});
  if (state.left !== null && state.phase !== "decode") text = t("left", {text, left: seconds(state.left)});
  if (state.state === "waiting") text = state.ahead > 1 ? t("waiting", {ahead: state.ahead}) : t("waiting.next");
  $("progress").hidden = false;
  if ($("progress-words").textContent !== text) $("progress-words").textContent = text;
  $("bar").setAttribute("aria-valuenow", Math.round(100 * state.share));
  $("bar").setAttribute("aria-valuetext", text);
  $("bar").firstElementChild.style.width = `${100 * state.share}%`;
}

/** Ask about a job until it has ended; null when another has taken its place, or the server has forgotten it. */
async function follow(state) {
  const mine = ++page.following;
  page.job = state.job;
  keep();
  busy(true);
  say("");
  let seen = 0, lost = false;
  for (;;) {
    if (mine !== page.following) return null;
    if (["done", "failed", "cancelled"].includes(state.state)) break;
    if (!lost) progress(state);
    if (state.glimpses > seen && state.kind !== "look") {
      seen = state.glimpses;
      compare.emerge(page.task === "edit" ? page.picture?.url : "", `api/jobs/${state.job}/glimpse?${seen}`);
      if (page.asked) showCaption(page.asked); else $("caption").replaceChildren();
      actions(null);
    }
    await later(lost ? LOST : POLL);
    try {
      state = await ask("GET", `api/jobs/${state.job}`);
      if (lost) say(t("back"));
      lost = false;
    } catch (error) {
      if (mine !== page.following) return null;
      if (error instanceof Refused) {
        page.job = null;
        busy(false);
        say(t("forgotten"), "error");
        return null;
      }
      if (!lost) say(t("lost"), "error");
      lost = true;
      $("progress").hidden = true;
    }
  }
  page.job = null;
  keep();
  busy(false);
  if (state.state === "done") return state;
  const last = page.results.find(r => r.result === page.result);
  if (last) showResult(last);
  if (state.state === "failed") say(translated(state.error), "error"); else say(t("cancelled"), "note");
  return null;
}

function story(result) {
  const took = seconds(result.took);
  const text = (result.saved ?? 0) < LITTLE ? t("done", {took}) : t("spared", {took, saved: seconds(result.saved)});
  return [text, result.notes.length ? "note" : "done", result.notes.map(sentence)];
}

/** Follow a job to its results, and show them. */
async function finish(state, axis, told = []) {
  const done = await follow(state);
  if (!done) return;
  if (done.kind === "look") return showInside(done);
  if (done.kind === "model") return modelLoaded(page.loading);
  await loadResults();
  if (!done.results.length) return;
  showGrid(done.kind === "variants" ? done.results : [], axis);
  showResult(done.results[0]);
  const [text, kind, notes] = story(done.results[0]);
  say(text, kind, [...told, ...notes]);
  $("compare").scrollIntoView({block: "nearest"});
}

/** What the caption says while it is made. */
const named = (task, source, target) => ({task, source, target, method: forms[task].shown.method, model: page.model});

const asked = task => ({model: page.model, method: forms[task].shown.method, settings: forms[task].changes,
  truncate: $("truncate").checked});

function editAsked() {
  const mask = page.mask && forms.edit.shown.reads.includes("mask") ? page.mask : "";
  return {...asked("edit"), picture: page.picture?.picture ?? "", source: $("source").value, target: $("target").value,
          mask, paste: mask !== "" && $("paste").checked, moves: moving()};
}

/** Take an instruction in the place of the target prompt for what it asks for, and say so. */
async function understood() {
  const source = $("source").value, {instructed} = await compared();
  if (instructed?.target) { $("target").value = instructed.target; changed(); }
  page.asked = named("edit", source, $("target").value);
  if (instructed?.problem) return [t("instruction.not", {why: translated(instructed.problem)})];
  return instructed?.target ? [t("instructed", {target: instructed.target})] : [];
}

/** From the first moment on nothing else can be asked for. */
async function submit(work) {
  live.stop();
  busy(true);
  say("");
  try { return await work(); } catch (error) { busy(false); throw error; }
}

const edit = told(async () => {
  if ($("edit").disabled) return;
  remember();
  $("grid").hidden = true;
  let lines = [];
  const job = await submit(async () => { lines = await understood(); return ask("POST", "api/edit", editAsked()); });
  await finish(job, undefined, lines);
});

const makeFromText = told(async () => {
  if ($("make").disabled) return;
  const side = name => $(name).value.trim() === "" ? null : Number($(name).value);
  $("grid").hidden = true;
  page.asked = named("generate", "", $("prompt").value);
  await finish(await submit(() => ask("POST", "api/generate", {...asked("generate"), prompt: $("prompt").value,
    negative: $("negative").value, width: side("width"), height: side("height")})));
});

const vary = told(async () => {
  if ($("vary").disabled) return;
  remember();
  const axis = $("axis").value;
  let lines = [];
  const job = await submit(async () => { lines = await understood(); return ask("POST", "api/variants", {...editAsked(), axis}); });
  await finish(job, axis, lines);
});

function showGrid(results, axis) {
  $("grid").hidden = !results.length;
  if (!results.length) return;
  const name = [...$("axis").options].find(o => o.value === axis)?.textContent ?? (axis ? label(axis) : "…");
  const value = r => axis === "method" ? r.method : `${label(axis)} ${r.settings[axis]}`;
  const grid = make("div", {className: "variants"}, ...results.map(r => thumb(r, axis ? value(r) : r.method, showResult)));
  $("grid").replaceChildren(make("h2", {textContent: t("variants.title", {axis: name})}), grid);
}

const cancel = told(async () => {
  const job = page.job;
  if (!job) return;
  page.following++;
  page.job = null;
  busy(false);
  const last = page.results.find(r => r.result === page.result);
  if (last) showResult(last);
  say(t("cancelled"), "note");
  keep();
  await ask("DELETE", `api/jobs/${job}`).catch(error => { if (!(error instanceof Refused)) throw error; });
});

/** An example is edited at once; what was running ends for it. */
const example = told(async index => {
  remember();
  if (page.job) await cancel();
  const got = await ask("POST", `api/examples/${index}`);
  select("edit");
  showPicture({...got});
  describe(got.source, got.target);
  await showMethod("edit", page.usual.edit);
  $("grid").hidden = true;
  showAlone(got);
  $("compare").scrollIntoView({block: "nearest"});
  page.asked = named("edit", got.source, got.target);
  await finish(await submit(() => ask("POST", "api/edit", editAsked())));
});

async function showInside(done) {
  $("inside").src = `api/jobs/${done.job}/page`;
  $("inside-dialog").showModal();
  say(t("looked"));
}

// ---- words to choose from

let writing = "target";  // the prompt that was written in last

/** A word into that prompt, in the place of what is marked there; it is marked then, and the next one takes its place. */
function suggest(word) {
  const box = $(page.task === "edit" ? writing : "prompt"), {selectionStart: from, selectionEnd: to, value} = box;
  const before = value.slice(0, from), after = value.slice(to);
  const left = /\S$/.test(before) ? " " : "", right = /^\w/.test(after) ? " " : "";
  box.setRangeText(left + word + right, from, to);
  box.setSelectionRange(from + left.length, from + left.length + word.length);
  box.focus();
  box.dispatchEvent(new Event("input"));
}

// ---- models

async function modelLoaded(name) {
  const said = forms.edit.words;
  const status = await turnTo(name);
  for (const task of Object.keys(TASKS)) {
    const method = forms[task].shown.method, here = page.methods[task].some(m => m.name === method);
    await showMethod(task, here ? method : status.defaults[task], task === "edit" && here ? said : {});
  }
  say(t("model.loaded", {model: page.model}));
}

/** Another model is the page's: what it knows, and its methods. */
async function turnTo(name) {
  page.left = {edit: {}, generate: {}};
  const status = await showStatus(name);
  await loadMethods();
  return status;
}

/** Go by the model that made something, if it is here, and keep to what the form of the other task says if that can be.
 *  It is loaded with the next edit; one that was never loaded is loaded now, as nobody knows its settings before.
 *  What is to be said of that; null where it was not to be. */
async function goBy({model, here}) {
  if (!here || model === page.model) return [];
  let status = await ask("GET", `api/status?model=${encodeURIComponent(model)}`);
  if (status.model !== model && !await follow(await ask("POST", "api/model", {name: model}))) return null;
  status = await turnTo(model);
  for (const task of Object.keys(TASKS)) await showMethod(task, status.defaults[task]);
  return [t(status.loaded ? "goes by" : "goes by.later", {model})];
}

async function showStatus(name = "") {
  const status = await ask("GET", `api/status?model=${encodeURIComponent(name)}`);
  page.model = status.model;
  page.limits = status.limits;
  page.usual = status.defaults;
  $("model").replaceChildren(...status.models.map(name => {
    const option = make("option", {value: name, textContent: name, selected: name === status.model}), about = `model.of.${name}`;
    if (hasText(about)) option.textContent = t(option.dataset.text = about);
    return option;
  }));
  if (!status.models.includes("sd-1.4")) {  // what is listed is on the disk, and a photograph needs another
    const more = make("option", {disabled: true, textContent: t("model.more")});
    more.dataset.text = "model.more";
    $("model").append(more);
  }
  $("known-part").hidden = !status.words.length;
  $("known").replaceChildren(...status.words.map(word => {
    const button = make("button", {type: "button", textContent: word});
    button.addEventListener("click", () => suggest(word));
    return button;
  }));
  for (const side of ["width", "height"]) if (!$(side).value || page.size !== status.size) $(side).value = status.size;
  page.size = status.size;
  return status;
}

// ---- the two tasks

function select(task) {
  page.task = task;
  for (const [name, {pane}] of Object.entries(TASKS)) {
    const tab = $(`tab-${name}`), on = name === task;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    $(pane).hidden = !on;
  }
  $("more-edit").hidden = $("examples-part").hidden = task !== "edit";
  if (forms[task].shown) showTier();
  keep();
}

// ---- the beginning

async function loadExamples() {
  const found = await ask("GET", "api/examples");
  $("examples-part").hidden = !found.length;
  $("examples").replaceChildren(...found.map((e, i) => {
    const button = make("button", {type: "button"}, make("img", {src: e.url, alt: "", className: "small"}),
      make("span", {textContent: t(`example.${i}`)}));
    button.addEventListener("click", () => example(i));
    return make("li", {}, button);
  }));
}

/** The page as it was before a reload, as far as the server remembers it. */
async function again(then) {
  for (const name of ["source", "target", "prompt", "negative"]) $(name).value = then[name] ?? "";
  $("truncate").checked = !!then.truncate;
  $("paste").checked = !!then.paste;
  page.left = then.left;
  page.past = then.past;
  page.filled = then.filled;
  page.given = then.given;
  page.asked = then.asked;
  page.loading = then.loading;
  $("undo").disabled = !page.past.length;
  for (const [task, held] of Object.entries(then.forms))
    if (held && page.methods[task].some(m => m.name === held.method)) await showMethod(task, held.method, held.values);
  page.live = then.live ?? null;
  $("live").checked = page.live ?? !!forms.edit.shown?.live;
  if (then.picture && (await fetch(then.picture.url)).ok) { showPicture(then.picture); page.mask = then.mask; page.moves = then.moves ?? []; showMask(); }
  select(then.task);
  const result = page.results.find(r => r.result === then.result);
  if (result) showResult(result); else if (page.picture)
    compare.show({before: "", after: page.picture.url, begins: 0, source: "", target: page.picture.name});
  if (result || page.picture) $("empty").hidden = true;
}

/** The first example's edit, finished. */
async function welcome(found) {
  for (let tries = 0; found.preparing && tries < 600; tries++) {
    $("empty").textContent = t("preparing");
    await later(500);
    if (page.result || page.job || page.picture) return;
    found = await ask("GET", "api/results");
  }
  $("empty").textContent = t("empty");
  const {results: [first]} = await loadResults();
  if (!first) return;
  const {record, picture} = await ask("POST", `api/results/${first.result}/restore`);
  showResult(first);
  await restore(record, picture, "", true);
}

function wire() {
  for (const task of Object.keys(TASKS)) {
    $(`tab-${task}`).addEventListener("click", () => { select(task); if (!page.job) say(""); });
    $(`tab-${task}`).addEventListener("keydown", event => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = Object.keys(TASKS).find(name => name !== page.task);
      select(other);
      $(`tab-${other}`).focus();
    });
    $(TASKS[task].menu).addEventListener("change", () => methodChosen(task));
    $(TASKS[task].cancel).addEventListener("click", cancel);
  }
  $("pane-edit").addEventListener("submit", event => { event.preventDefault(); edit(); });
  $("pane-generate").addEventListener("submit", event => { event.preventDefault(); makeFromText(); });
  $("source").addEventListener("input", () => { page.filled = false; });
  for (const name of ["source", "target", "prompt", "negative"]) $(name).addEventListener("input", changed);
  for (const name of ["source", "target"]) $(name).addEventListener("focus", () => { writing = name; });
  for (const name of ["source", "target", "truncate", "paste"]) $(name).addEventListener("input", () => follows("edit"));
  $("live").addEventListener("change", () => { page.live = $("live").checked; keep(); follows("edit"); });
  for (const kind of ["focusin", "pointerdown", "keydown"])
    document.addEventListener(kind, () => { if (!live.running) page.stood = snapshot(); }, true);
  document.addEventListener("keydown", event => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    if (page.task === "edit") edit(); else makeFromText();
  });
  $("file").addEventListener("change", event => { bring(event.target.files[0]); event.target.value = ""; });
  document.addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  document.addEventListener("drop", event => {
    event.preventDefault();
    $("drop").classList.remove("over");
    bring(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", event => {
    const file = [...event.clipboardData.files].find(f => f.type.startsWith("image/"));
    if (file) bring(file);
  });
  $("undo").addEventListener("click", undo);
  $("vary").addEventListener("click", vary);
  $("brush").addEventListener("click", () => brush.open(page.picture, mask => { page.mask = mask.picture; showMask(); keep(); follows("edit"); }));
  $("unmask").addEventListener("click", () => { page.mask = null; page.moves = []; showMask(); keep(); follows("edit"); });
  $("move").addEventListener("click", movePart);
  $("put-file").addEventListener("change", event => { putIn(event.target.files[0]); event.target.value = ""; });
  $("recommended").addEventListener("click", () => { form().set(form().recommended); say(t("recommends")); });
  $("use").addEventListener("click", told(async () => {
    remember();
    const shown = page.results.find(r => r.result === page.result);
    showPicture(await ask("POST", `api/pictures/of/${page.result}`));
    $("source").value = $("target").value = shown?.target ?? "";
    select("edit");
    changed();
    say(t("used"));
  }));
  $("look").addEventListener("click", told(async () => finish(await ask("POST", `api/results/${page.result}/inside`))));
  for (const way of ["command", "python"]) $(way).addEventListener("click", told(async () => {
    const found = await ask("GET", `api/results/${page.result}/recipe`);
    $("copy-title").textContent = t(way);
    $("copy-text").value = found[way];
    $("copy").textContent = t("copy");
    $("copy-dialog").showModal();
    $("copy-text").select();
  }));
  $("copy").addEventListener("click", async () => {
    $("copy-text").select();
    try { await navigator.clipboard.writeText($("copy-text").value); } catch { document.execCommand("copy"); }
    $("copy").textContent = t("copied");
  });
  for (const close of document.querySelectorAll("dialog .close"))
    close.addEventListener("click", () => close.closest("dialog").close());
  $("model").addEventListener("change", told(async () => {
    const name = page.loading = $("model").value;
    try { await finish(await ask("POST", "api/model", {name})); } finally { $("model").value = page.model; }
  }));
  $("language").addEventListener("change", () => { speak($("language").value, true); keep(); location.reload(); });
}

async function begin() {
  await loadTexts();
  $("language").replaceChildren(...languages().map(([code, name]) =>
    make("option", {value: code, textContent: name, selected: code === spoken()})));
  wire();
  showPicture(null);
  const then = kept(), status = await showStatus(then?.model);
  await loadMethods();
  for (const task of Object.keys(TASKS)) await showMethod(task, status.defaults[task]);
  select("edit");
  await loadExamples();
  const found = await loadResults();
  if (then) await again(then).catch(fail);
  page.settled = true;
  keep();
  document.body.dataset.ready = "yes";
  const job = then?.job && found.jobs.includes(then.job) ? then.job : null;
  if (job) return finish(await ask("GET", `api/jobs/${job}`));
  if (then?.job) say(t("forgotten"), "error");
  if (!page.result && !page.picture) await welcome(found);
}

begin().catch(fail);
