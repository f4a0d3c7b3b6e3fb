// Draws {prefix, groups, values}, and writes values back as they are typed; text stays text, for the server to read.
// What is being typed is never drawn anew.
let structure = "", fields = {};

function make(tag, attributes = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...inside);
  return made;
}

function send(name, shown) {
  props.value = {...props.value, values: {...props.value.values, [name]: shown}};
  trigger("input");
}

function input(f, id) {
  if (f.kind === "choice") {
    const box = make("select", {id});
    for (const choice of f.choices) box.append(make("option", {value: choice, textContent: choice}));
    box.onchange = () => send(f.name, box.value);
    return box;
  }
  if (f.kind === "switch") {
    const box = make("input", {id, type: "checkbox"});
    box.onchange = () => send(f.name, box.checked);
    return box;
  }
  const box = make("input", {id, type: "text", autocomplete: "off", spellcheck: false});
  if (["whole", "perhaps", "number"].includes(f.kind)) box.inputMode = "decimal";
  box.oninput = () => send(f.name, box.value);
  return box;
}

function show(values) {
  for (const [name, box] of Object.entries(fields)) {
    if (box.type === "checkbox") box.checked = values[name];
    else if (box.value !== values[name]) box.value = values[name];
  }
}

function draw() {
  const value = props.value, at = element.querySelector(".form-of-settings");
  if (!value || !value.groups || !at) return;
  const now = JSON.stringify([value.prefix, value.groups]);
  if (now !== structure) {
    structure = now;
    fields = {};
    at.replaceChildren(...value.groups.map(([heading, members]) => make("section", {},
      make("h3", {textContent: heading}), make("div", {className: "fields"}, ...members.map(f => {
        const id = `${value.prefix}-${f.name}-box`, box = fields[f.name] = input(f, id);
        return make("div", {className: `field ${f.kind}`, id: `${value.prefix}-${f.name}`},
          make("label", {htmlFor: id, textContent: f.name}), box,
          make("p", {textContent: f.range ? `${f.help} ${f.range}.` : f.help}));
      })))));
  }
  show(value.values);
}

watch("value", draw);
draw();
