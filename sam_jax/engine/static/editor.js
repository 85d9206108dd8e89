// The mask that is being made: clicks, box, strokes, candidates, undo.

import { area, decode, fill, stroke } from "./masks.js";

const EMPTY = {
  points: [], labels: [], box: null, strokes: [], candidates: [], chosen: 0, painted: null,
  replaces: null, label: "", text: "", seconds: 0,
};
const STEPS = 60; // that can be undone
const PAUSE = 15; // seconds without doing anything from which on time does not count

export class Editor {
  constructor(changed) {
    this.changed = changed;
    this.reset();
  }

  reset(height = 0, width = 0) {
    [this.height, this.width] = [height, width];
    this.state = EMPTY;
    this.past = [];
    this.future = [];
    this.pending = false;
    this.last = null;
    this.begun = null; // when the first thing was done to this mask
    this.version = 0;
  }

  /** Counts the time since the last thing that was done. */
  tick() {
    const now = performance.now() / 1000;
    const gap = this.last === null ? 0 : Math.min(PAUSE, now - this.last);
    this.last = now;
    return this.state.seconds + gap;
  }

  change(fields, remember = true) {
    this.begun ??= performance.now();
    if (remember) {
      this.past.push(this.state);
      if (this.past.length > STEPS) this.past.shift();
      this.future = [];
    }
    this.state = { ...this.state, ...fields, seconds: this.tick() };
    this.version++;
    this.changed();
  }

  undo() {
    if (!this.past.length) return false;
    this.future.push(this.state);
    this.state = { ...this.past.pop(), seconds: this.tick(), label: this.state.label };
    this.pending = false;
    this.version++;
    this.changed();
    return true;
  }

  redo() {
    if (!this.future.length) return false;
    this.past.push(this.state);
    this.state = { ...this.future.pop(), seconds: this.tick(), label: this.state.label };
    this.version++;
    this.changed();
    return true;
  }

  /** Uint8Array [H * W] as it is now, or null. */
  get mask() {
    return this.state.painted || this.state.candidates[this.state.chosen]?.mask || null;
  }

  get area() {
    const mask = this.mask;
    return mask ? area(mask) : 0;
  }

  get empty() {
    return !this.asked && !this.state.text && !this.state.painted;
  }

  /** Whether there are clicks or a box. */
  get asked() {
    return this.state.points.length > 0 || this.state.box !== null;
  }

  /** Words for the object; what they found before is no start for others. */
  ask(text) {
    this.pending = true;
    this.change({ text, candidates: [], chosen: 0, painted: null });
  }

  /** Gives up what was asked; words that cannot be read go with it. */
  withdraw() {
    this.pending = false;
    const before = this.past[this.past.length - 1];
    if (before && before.text !== this.state.text) this.undo();
  }

  click(point, label) {
    const points = [...this.state.points, point];
    this.pending = true;
    this.change({ points, labels: [...this.state.labels, label] });
  }

  drawBox(box) {
    this.pending = true;
    this.change({ box });
  }

  /** What the model answered to the state as it is: not a step of its own. */
  answer(candidates) {
    const made = candidates.map((one) => ({ ...one, mask: decode(one) }));
    this.pending = false;
    this.change({ candidates: made, chosen: 0, painted: null }, false);
  }

  /** The server no longer knows the candidates: the chosen one's mask goes on as if painted. */
  forget() {
    this.change({ painted: this.mask && this.mask.slice() }, false);
  }

  choose(k) {
    if (k >= 0 && k < this.state.candidates.length && k !== this.state.chosen) {
      this.change({ chosen: k, painted: null });
    }
  }

  /** Starts a stroke; later points extend it and are undone with it. */
  startStroke(tool, point, radius) {
    const mask = this.mask ? this.mask.slice() : new Uint8Array(this.height * this.width);
    const strokes = [...this.state.strokes, { tool, radius, points: [point] }];
    stroke(mask, this.height, this.width, point, point, radius, tool === "brush" ? 1 : 0);
    this.pending = false; // an answer to earlier clicks would take the stroke away
    this.change({ painted: mask, strokes });
  }

  extendStroke(point) {
    const current = this.state.strokes[this.state.strokes.length - 1];
    const from = current.points[current.points.length - 1];
    const value = current.tool === "brush" ? 1 : 0;
    stroke(this.state.painted, this.height, this.width, from, point, current.radius, value);
    current.points.push(point);
    this.version++;
    this.changed();
  }

  lasso(points, value) {
    const mask = this.mask ? this.mask.slice() : new Uint8Array(this.height * this.width);
    fill(mask, this.height, this.width, points, value);
    const strokes = [...this.state.strokes, { tool: "lasso", radius: value ? 0 : 1, points }];
    this.pending = false;
    this.change({ painted: mask, strokes });
  }

  /** Takes a saved mask up, to correct it. */
  correct(mask, id, label) {
    this.change({ ...EMPTY, painted: mask, replaces: id, label });
  }

  setLabel(label) {
    this.state = { ...this.state, label };
  }

  /** What the server is asked; null where nothing is to be asked. */
  question(encode) {
    const { points, labels, box, text, candidates, chosen, painted } = this.state;
    if (!this.asked && !text) return null;
    return {
      points,
      labels,
      box,
      text: text || null,
      mask: painted ? encode(painted, this.height, this.width) : null,
      previous: painted ? null : candidates[chosen]?.token || null,
    };
  }
}
