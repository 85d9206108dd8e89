// The photo on its canvas: zoom, pan, and what is drawn over it.

import { COLOURS } from "./masks.js";

const NEW = [255, 255, 255];

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.image = null;
    this.width = this.height = 0;
    this.scale = 1;
    this.offset = [0, 0];
    this.light = 100;
    this.scene = () => ({});
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    if (this.fitted) this.fit();
    this.draw();
  }

  show(image, width, height) {
    [this.image, this.width, this.height] = [image, width, height];
    this.fit();
  }

  fit() {
    if (!this.width) return;
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [this.canvas.width, this.canvas.height];
    this.scale = Math.min(w / this.width, h / this.height) * 0.97;
    this.offset = [(w - this.width * this.scale) / 2, (h - this.height * this.scale) / 2];
    this.fitted = true;
    this.ratio = ratio;
    this.draw();
  }

  /** Photo coordinates of a place on the page. */
  photo(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    return [
      ((clientX - box.left) * ratio - this.offset[0]) / this.scale,
      ((clientY - box.top) * ratio - this.offset[1]) / this.scale,
    ];
  }

  /** The place on the page of photo coordinates. */
  page([x, y]) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    return [
      box.left + (x * this.scale + this.offset[0]) / ratio,
      box.top + (y * this.scale + this.offset[1]) / ratio,
    ];
  }

  inside([x, y]) {
    return x >= 0 && y >= 0 && x < this.width && y < this.height;
  }

  zoom(factor, clientX, clientY) {
    const [x, y] = this.photo(clientX, clientY);
    const scale = Math.min(40, Math.max(0.02, this.scale * factor));
    this.offset[0] += x * (this.scale - scale);
    this.offset[1] += y * (this.scale - scale);
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  pan(dx, dy) {
    const ratio = this.canvas.width / this.canvas.clientWidth;
    this.offset[0] += dx * ratio;
    this.offset[1] += dy * ratio;
    this.fitted = false;
    this.draw();
  }

  /** Draws before the next frame, however often it is asked for. */
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
    });
  }

  paint() {
    const { context, scale } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.image) return;
    const scene = this.scene();
    context.setTransform(scale, 0, 0, scale, ...this.offset);
    context.imageSmoothingEnabled = scale < 2;
    context.filter = this.light === 100 ? "none" : `brightness(${this.light}%)`;
    context.drawImage(this.image, 0, 0, this.width, this.height);
    context.filter = "none";
    for (const mask of scene.saved || []) {
      if (mask.visible) this.put(mask.picture, mask.chosen ? 1 : 0.8);
    }
    if (scene.hover) this.put(scene.hover, 0.45);
    if (scene.current) this.put(scene.current, 1);
    this.lines(scene);
  }

  put({ canvas, x, y }, alpha) {
    if (!canvas.width) return;
    this.context.globalAlpha = alpha;
    this.context.drawImage(canvas, x, y);
    this.context.globalAlpha = 1;
  }

  lines(scene) {
    const unit = (window.devicePixelRatio || 1) / this.scale;
    if (scene.box) this.rectangle(scene.box, unit);
    if (scene.lasso && scene.lasso.length > 1) this.polyline(scene.lasso, unit);
    for (const [k, point] of (scene.points || []).entries()) {
      this.marker(point, scene.labels[k], unit, scene.pending);
    }
    if (scene.cursor) this.circle(scene.cursor, scene.radius, unit);
    if (scene.cross) this.cross(scene.cross, unit);
  }

  twice(path, unit, colour, width = 2) {
    for (const [style, wide] of [["#000c", width + 2], [colour, width]]) {
      this.context.strokeStyle = style;
      this.context.lineWidth = wide * unit;
      this.context.beginPath();
      path();
      this.context.stroke();
    }
  }

  rectangle([x0, y0, x1, y1], unit) {
    this.twice(() => this.context.rect(x0, y0, x1 - x0, y1 - y0), unit, "#fff");
  }

  polyline(points, unit) {
    this.twice(() => points.forEach(([x, y], k) => this.context[k ? "lineTo" : "moveTo"](x, y)), unit, "#ffd76a");
  }

  circle([x, y], radius, unit) {
    this.twice(() => this.context.arc(x, y, radius, 0, 2 * Math.PI), unit, "#fff", 1);
  }

  cross([x, y], unit) {
    const arm = 12 * unit;
    this.twice(() => {
      this.context.moveTo(x - arm, y);
      this.context.lineTo(x + arm, y);
      this.context.moveTo(x, y - arm);
      this.context.lineTo(x, y + arm);
    }, unit, "#ffd76a");
  }

  marker([x, y], label, unit, pending) {
    const { context } = this;
    const radius = 6 * unit;
    for (const [style, grow] of [["#000", 2.5], ["#fff", 1.5], [label ? "#28c83c" : "#e12828", 0]]) {
      context.fillStyle = style;
      context.globalAlpha = pending ? 0.6 : 1;
      context.beginPath();
      context.arc(x, y, radius + grow * unit, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;
    context.fillStyle = "#fff";
    context.fillRect(x - 3.5 * unit, y - 0.8 * unit, 7 * unit, 1.6 * unit);
    if (label) context.fillRect(x - 0.8 * unit, y - 3.5 * unit, 1.6 * unit, 7 * unit);
  }
}

export const colour = (k) => (k < 0 ? NEW : COLOURS[k % COLOURS.length]);
