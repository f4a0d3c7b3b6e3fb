// Boxes and points on a picture, drawn and moved with a pointer or with the keys: what is moved, and where things are put.
// Both are shares of the sides: left, top, right, bottom, or x, y of a point, which stands for the disc around it.

import {$, t} from "./base.js";

const STEP = 0.02, LEAST = 0.03;  // shares of a side: what a key moves, and the smallest box
const RADIUS = 0.1;  // of a point's disc, a share of the shorter side: as sage/pictures/regions.py has it
const isPoint = place => place.length === 2;
const LINES = ["#f59e0b", "#14b8a6"], DASHES = [10, 8];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class Boxes {
  constructor() {
    Object.assign(this, {canvas: $("boxes"), titles: [], earlier: [], boxes: [], pressed: null});
    this.pen = this.canvas.getContext("2d");
    this.canvas.addEventListener("pointerdown", event => this.press(event));
    this.canvas.addEventListener("pointermove", event => { if (this.pressed) this.pull(this.place(event)); });
    this.canvas.addEventListener("pointerup", () => this.release());
    this.canvas.addEventListener("pointercancel", () => this.release());
    this.canvas.addEventListener("keydown", event => this.key(event));
    $("boxes-again").addEventListener("click", () => this.again());
    $("boxes-done").addEventListener("click", () => this.finish());
  }

  /** Ask for a box of each title in turn; of two the first may be a point, and the second has its form and size. `done` is
   *  given them in pixels.  Of `earlier` pairs, in pixels too, is shown what they do. */
  open(picture, title, titles, done, earlier = []) {
    const share = place => place.map((n, i) => n / (i % 2 ? picture.height : picture.width));
    Object.assign(this, {picture, titles, done, image: $("boxes-picture"), earlier: earlier.map(pair => pair.map(share))});
    const grow = 640 / Math.max(picture.width, picture.height);
    this.canvas.width = Math.round(picture.width * grow);
    this.canvas.height = Math.round(picture.height * grow);
    this.canvas.parentElement.style.setProperty("--aspect", picture.width / picture.height);
    this.image.src = picture.url;
    this.image.onload = () => this.draw();
    $("boxes-title").textContent = t(title);
    this.again();
    $("boxes-dialog").showModal();
    this.canvas.focus();
  }

  again() {
    this.boxes = [];
    this.draw();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [clamp((event.clientX - box.left) / box.width, 0, 1), clamp((event.clientY - box.top) / box.height, 0, 1)];
  }

  get second() { return this.titles.length > 1 && this.boxes.length > 0; }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    const here = this.place(event);
    if (this.second && !this.drawn) { this.pressed = here; return this.pull(here); }
    if (this.boxes.length === this.titles.length) this.boxes = [];
    this.pressed = here;
    this.drawn = true;
  }

  pull(to) {
    if (this.second && !this.drawn) this.boxes[1] = this.centred(this.boxes[0], to);
    else {
      const [x, y] = this.pressed;
      this.boxes = [[Math.min(x, to[0]), Math.min(y, to[1]), Math.max(x, to[0]), Math.max(y, to[1])]];
    }
    this.draw();
  }

  release() {
    const [first] = this.boxes;
    if (this.drawn && (!first || Math.min(first[2] - first[0], first[3] - first[1]) < LEAST))  // no more than a click
      this.boxes = this.titles.length > 1 ? [[...this.pressed]] : [];
    Object.assign(this, {pressed: null, drawn: false});
    this.draw();
  }

  /** What has the form of a place, and its middle at another. */
  centred(place, [x, y]) {
    if (isPoint(place)) return [x, y];
    const [left, top, right, bottom] = place, w = right - left, h = bottom - top;
    const a = clamp(x - w / 2, 0, 1 - w), b = clamp(y - h / 2, 0, 1 - h);
    return [a, b, a + w, b + h];
  }

  /** Arrows move the box, with shift they size the first one; space goes on to the next. */
  key(event) {
    const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (!this.boxes.length) this.boxes = [[0.35, 0.35, 0.65, 0.65]];
    else if (!move && this.boxes.length < this.titles.length) this.boxes.push([...this.boxes[0]]);
    else if (move) {
      const box = this.boxes.at(-1), [dx, dy] = move.map(m => m * STEP);
      if (isPoint(box)) box.splice(0, 2, clamp(box[0] + dx, 0, 1), clamp(box[1] + dy, 0, 1));
      else if (event.shiftKey && this.boxes.length === 1) {
        box[2] = clamp(box[2] + dx, box[0] + LEAST, 1);
        box[3] = clamp(box[3] + dy, box[1] + LEAST, 1);
      } else {
        const [x, y] = [clamp(dx, -box[0], 1 - box[2]), clamp(dy, -box[1], 1 - box[3])];
        box.splice(0, 4, box[0] + x, box[1] + y, box[2] + x, box[3] + y);
      }
    }
    this.draw();
  }

  draw() {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const pair of this.earlier) this.pair(pair, DASHES);
    this.pair(this.boxes, []);
    const at = Math.min(this.boxes.length, this.titles.length - 1), all = this.boxes.length === this.titles.length;
    $("boxes-hint").textContent = all ? t("boxes.ready") : `${t(this.titles[at])} ${t("boxes.keys")}`;
    $("boxes-done").disabled = !all;
  }

  /** Boxes, and in the second of two what is in the first. */
  pair(found, dashes) {
    const {width: w, height: h} = this.canvas, [first, second] = found;
    if (first && second && this.image.complete) {
      this.pen.save();
      this.pen.clip(this.outline(second, w, h));
      this.pen.drawImage(this.image, ...this.of(first, this.image.naturalWidth, this.image.naturalHeight), ...this.of(second, w, h));
      this.pen.restore();
    }
    this.pen.setLineDash(dashes);
    found.forEach((box, i) => {
      for (const [style, width] of [["#000", 7], [LINES[i], 4]]) {
        Object.assign(this.pen, {strokeStyle: style, lineWidth: width});
        this.pen.stroke(this.outline(box, w, h));
      }
    });
  }

  outline(place, w, h) {
    const path = new Path2D();
    if (isPoint(place)) path.arc(place[0] * w, place[1] * h, RADIUS * Math.min(w, h), 0, 2 * Math.PI);
    else path.rect(...this.of(place, w, h));
    return path;
  }

  /** Left, top, width and height on a picture of w x h. */
  of(place, w, h) {
    if (isPoint(place)) {
      const radius = RADIUS * Math.min(w, h);
      return [place[0] * w - radius, place[1] * h - radius, 2 * radius, 2 * radius];
    }
    const [left, top, right, bottom] = place;
    return [left * w, top * h, (right - left) * w, (bottom - top) * h];
  }

  finish() {
    const pixels = place => place.map((n, i) => n * (i % 2 ? this.picture.height : this.picture.width));
    $("boxes-dialog").close();
    this.done(this.boxes.map(place => isPoint(place) ? pixels(place).map(Math.round) : pixels(place)));
  }
}
