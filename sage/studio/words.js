// Draws {source, target, pairs, phrases, factors, others, problem}, and writes back the values of the phrases, and
// `weights`, in the words of the command line.  Text goes in as text, never as markup: prompts may come out of a stranger's picture.
const root = () => element.querySelector(".words");
const opened = new Set();  // words whose slider is shown, though they do not differ

function make(tag, attributes = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...inside);
  return made;
}

const bare = word => word.replace(/^[,.;:!?"'()]+|[,.;:!?"'()]+$/g, "") || word;

function factors(value) {
  const given = value.others ? [value.others] : [], seen = new Set();
  for (const [word, , factor] of value.target)
    if (factor !== 1 && !seen.has(bare(word))) { seen.add(bare(word)); given.push(`${bare(word)}:${factor}`); }
  return given.join(", ") || "none";
}

function send(change) {
  const value = {...props.value, ...change};
  props.value = {...value, weights: factors(value)};
  trigger("input");
}

function prompt(name, words) {
  const line = make("p", {className: "prompt"}, make("b", {textContent: name}));
  for (const [word, differs] of words) {
    const weighed = name === "target" && props.value.factors;
    const chip = make(weighed ? "button" : "span", {textContent: word, className: differs ? "differs" : ""});
    if (weighed) {
      chip.type = "button";
      chip.title = "weigh this word";
      chip.onclick = () => { opened.has(bare(word)) ? opened.delete(bare(word)) : opened.add(bare(word)); draw(); };
    }
    line.append(" ", chip);
  }
  return line;
}

function slider(word, factor) {
  const number = make("output", {textContent: `× ${factor}`});
  const range = make("input", {type: "range", min: 0, max: 4, step: 0.1, value: factor, ariaLabel: `weight of ${word}`});
  range.oninput = () => { number.textContent = `× ${range.value}`; };
  range.onchange = () => send({target: props.value.target.map(([w, differs, f]) =>
    [w, differs, bare(w) === word ? Number(range.value) : f])});
  return make("label", {className: "weight"}, make("span", {textContent: word}), range, number);
}

function phrases(index) {
  const {title, value: now} = props.value.phrases[index];
  const pair = !["auto", "none"].includes(now), parts = pair ? now.split(",") : ["", ""];
  const write = value => send({phrases: props.value.phrases.map((p, i) => i === index ? {...p, value} : p)});
  const choice = make("select", {ariaLabel: title});
  for (const [value, text] of [["auto", "what differs"], ["none", "nothing"], ["pair", "these words:"]])
    choice.append(make("option", {value, textContent: text, selected: value === (pair ? "pair" : now)}));
  const fields = parts.map((text, i) => make("input", {type: "text", value: text.trim(), hidden: !pair,
    placeholder: i ? "in the target" : "in the source", ariaLabel: `${title}, in the ${i ? "target" : "source"}`}));
  const both = () => fields.map(field => field.value.trim()).join(", ");
  choice.onchange = () => {
    if (choice.value !== "pair") return write(choice.value);
    const first = props.value.pairs[0] || ["", ""];
    fields.forEach((field, i) => { field.hidden = false; field.value = first[i]; });
    write(both());
  };
  for (const field of fields) field.onchange = () => write(both());
  return make("div", {className: "phrases"}, make("span", {textContent: title}), choice, ...fields);
}

function draw() {
  const value = props.value, at = root();
  if (!value || !at) return;
  at.replaceChildren();
  if (value.problem) return at.append(make("p", {className: "hint", textContent: value.problem}));
  if (!value.target || !value.target.length)
    return at.append(make("p", {className: "hint", textContent: "Describe the picture as it is and as it shall be: the words that differ are shown here."}));
  at.append(prompt("source", value.source), prompt("target", value.target));
  const weights = make("div", {className: "weights"}), shown = new Set();
  for (const [word, differs, factor] of value.factors ? value.target : [])
    if ((differs || factor !== 1 || opened.has(bare(word))) && !shown.has(bare(word))) {
      shown.add(bare(word));
      weights.append(slider(bare(word), factor));
    }
  at.append(weights, ...value.phrases.map((_, i) => phrases(i)));
  if (value.factors) at.append(make("p", {className: "hint", textContent: "Click any word of the target to weigh it."}));
}

watch("value", draw);
draw();
