// Where the picture may change, painted over it: with a pointer, or with the keys.

import {$, ask, make, t} from "./base.js";

const STEP = 8;  // canvas pixels that an arrow key moves

export class Brush {
  /** `failed` is given what goes wrong. */
  constructor(failed) {
    Object.assign(this, {failed, done: null, canvas: $("canvas"), at: null, here: null});
    this.pen = this.canvas.getContext("2d", {willReadFrequently: true});
    this.canvas.addEventListener("pointerdown", event => {
      this.canvas.setPointerCapture(event.pointerId);
      this.at = null;
      this.paint(this.place(event));
    });
    this.canvas.addEventListener("pointermove", event => { if (event.buttons) this.paint(this.place(event)); });
    this.canvas.addEventListener("keydown", event => this.key(event));
    $("brush-clear").addEventListener("click", () => this.clear());
    $("brush-done").addEventListener("click", () => this.finish());
    $("mask-file").addEventListener("change", event => this.load(event.target.files[0]));
  }

  /** Paint over a picture under a title; `done` is given the picture of the mask as the server knows it. */
  open(picture, done, title = "brush") {
    this.done = done;
    $("brush-title").textContent = t(title);
    $("brush-hint").textContent = t(`${title}.hint`);
    const scale = Math.min(1, 1024 / Math.max(picture.width, picture.height));
    const width = Math.max(1, Math.round(picture.width * scale)), height = Math.max(1, Math.round(picture.height * scale));
    const grow = Math.max(1, Math.ceil(384 / Math.max(width, height)));
    if (this.of !== picture.picture) {
      this.of = picture.picture;
      this.canvas.width = width * grow;
      this.canvas.height = height * grow;
      this.here = {x: this.canvas.width / 2, y: this.canvas.height / 2};
    }
    this.canvas.parentElement.style.setProperty("--aspect", width / height);
    $("brush-picture").src = picture.url;
    $("brush-dialog").showModal();
  }

  get radius() { return $("brush-size").value / 100 * Math.max(this.canvas.width, this.canvas.height) / 2; }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {x: (event.clientX - box.left) / box.width * this.canvas.width,
            y: (event.clientY - box.top) / box.height * this.canvas.height};
  }

  paint(to) {
    const from = this.at || to;
    this.pen.globalCompositeOperation = $("erase").checked ? "destination-out" : "source-over";
    Object.assign(this.pen, {strokeStyle: "#14b8a6", lineWidth: 2 * this.radius, lineCap: "round"});
    this.pen.beginPath();
    this.pen.moveTo(from.x, from.y);
    this.pen.lineTo(to.x, to.y + 0.01);
    this.pen.stroke();
    this.at = this.here = to;
  }

  key(event) {
    const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (move) {
      this.here = {x: Math.min(this.canvas.width, Math.max(0, this.here.x + STEP * move[0])),
                   y: Math.min(this.canvas.height, Math.max(0, this.here.y + STEP * move[1]))};
      if (event.shiftKey) this.paint(this.here);
      return;
    }
    this.at = null;
    this.paint(this.here);
  }

  clear() { this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height); }

  async load(file) {
    if (!file) return;
    try {
      const given = await createImageBitmap(file), held = make("canvas", {width: this.canvas.width, height: this.canvas.height});
      const pen = held.getContext("2d");
      pen.drawImage(given, 0, 0, held.width, held.height);
      const data = pen.getImageData(0, 0, held.width, held.height);
      for (let i = 0; i < data.data.length; i += 4) {
        const white = (data.data[i] + data.data[i + 1] + data.data[i + 2]) / 3 >= 127.5 && data.data[i + 3] > 127;
        data.data.set(white ? [20, 184, 166, 255] : [0, 0, 0, 0], i);
      }
      this.pen.putImageData(data, 0, 0);
    } catch (error) { this.failed(error); }
  }

  /** White where it is painted, black elsewhere, to the server. */
  async finish() {
    const {width, height} = this.canvas, painted = this.pen.getImageData(0, 0, width, height);
    let any = false;
    for (let i = 0; i < painted.data.length; i += 4) {
      const value = painted.data[i + 3] > 127 ? 255 : 0;
      any ||= value > 0;
      painted.data.set([value, value, value, 255], i);
    }
    $("brush-dialog").close();
    if (!any) return this.failed(new Error(t("brush.empty")));
    const mask = make("canvas", {width, height});
    mask.getContext("2d").putImageData(painted, 0, 0);
    const file = await new Promise(done => mask.toBlob(done, "image/png"));
    try { this.done(await ask("POST", "api/masks", file)); } catch (error) { this.failed(error); }
  }
}
