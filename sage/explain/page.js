"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = id => document.getElementById(id), all = selector => [...document.querySelectorAll(selector)];
const slider = get("step"), play = get("play");

for (const [name, frames] of Object.entries(data.predicted))
  for (const image of all(`td img.predicted-${name}`)) {
    if (!frames[image.dataset.step]) { image.remove(); continue; }
    image.src = frames[image.dataset.step];
    image.onclick = () => { slider.value = data.steps.indexOf(Number(image.dataset.step)); stop(); show(); };
  }

const nearest = step => data.decoded.reduce((a, b) => Math.abs(b - step) < Math.abs(a - step) ? b : a, data.decoded[0]);

function put(figure, frame) {
  if (!figure) return;
  figure.classList.toggle("idle", !frame);
  figure.title = frame ? "" : "nothing at this step";
  if (frame) figure.querySelector("img").src = frame;
}

function show() {
  const at = Number(slider.value), step = data.steps[at], decoded = nearest(step);
  const from = decoded === undefined || decoded === step ? "" : `, predictions of step ${decoded + 1}`;
  get("now").textContent = `step ${step + 1} of ${data.total}, ${(100 * data.signal[at]).toFixed(1)} % signal${from}`;
  for (const [name, frames] of Object.entries(data.predicted))
    put(get(`predicted-${name}`), frames[decoded]);
  for (const [name, frames] of Object.entries(data.maps))
    put(get(name), frames[at]);
  for (const image of all("td img")) image.classList.toggle("now", Number(image.dataset.step) === decoded);
  for (const svg of all("svg")) {
    const left = Number(svg.dataset.left), right = Number(svg.dataset.right), cursor = svg.querySelector(".cursor");
    const x = left + (right - left) * step / Math.max(1, data.total - 1);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  }
}

let timer = null;
function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
function start() {
  play.onclick = () => {
    if (timer) return stop();
    if (Number(slider.value) === data.steps.length - 1) slider.value = 0;
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === data.steps.length - 1) stop();
    }, Math.max(60, 4000 / data.steps.length));
    show();
  };
  slider.oninput = () => { stop(); show(); };
  show();
}
if (slider) start();
