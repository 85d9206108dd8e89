// The model: one photo at a time, any number of prompts. Everything slow happens here.

import { drawnBox, enlarge, resize } from "./pixels.js";

let ort, manifest, how;
const sessions = {};
let photo = null; // { hw, frameHw, embedded }

async function start() {
  manifest = await (await fetch("manifest.json")).json();
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  for (const provider of adapter ? ["webgpu", "wasm"] : ["wasm"]) {
    try {
      ort = await import(`./ort/ort.${provider}.min.mjs`);
      ort.env.wasm.wasmPaths = new URL("ort/", self.location.href).href;
      ort.env.wasm.numThreads = self.crossOriginIsolated
        ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;
      how = { provider, threads: ort.env.wasm.numThreads };
      await Promise.all([session("encoder"), session("decoder")]);
      return how;
    } catch (error) {
      for (const name of Object.keys(sessions)) delete sessions[name];
      if (provider === "wasm") throw error;
    }
  }
}

function session(name) {
  sessions[name] ??= ort.InferenceSession.create(`model/${name}.onnx`, {
    executionProviders: [how.provider],
  });
  return sessions[name];
}

const tensor = (type, data, shape) => new ort.Tensor(type, data, shape);

async function embed({ rgba, hw }) {
  const side = manifest.image_size, scale = side / Math.max(...hw);
  const frameHw = hw.map((n) => Math.max(1, Math.floor(n * scale + 0.5)));
  const small = resize(rgba, hw, frameHw), frame = new Uint8Array(side * side * 3);
  for (let y = 0; y < frameHw[0]; y++) {
    const row = small.subarray(3 * y * frameHw[1], 3 * (y + 1) * frameHw[1]);
    frame.set(row, 3 * y * side);
  }
  photo = null;
  const encoder = await session("encoder");
  const embedded = await encoder.run({
    images: tensor("uint8", frame, [1, side, side, 3]),
    input_hw: tensor("int32", Int32Array.from(frameHw), [1, 2]),
  });
  photo = { hw, frameHw, embedded };
  return {};
}

/** points: [x, y, 1 or 0] in pixels of the photo; box: [x0, y0, x1, y1]; size: of the mask. */
async function predict({ points, box, size, candidate }) {
  const { hw, frameHw, embedded } = photo, slots = manifest.onnx_slots;
  const ratio = [frameHw[1] / hw[1], frameHw[0] / hw[0]];
  const scaled = points.map(([x, y, label]) => [x * ratio[0], y * ratio[1], label]);
  const corners = box && box.map((value, k) => value * ratio[k % 2]);
  if (box) scaled.push([corners[0], corners[1], 2], [corners[2], corners[3], 3]);
  else scaled.push([0, 0, -1]);
  if (scaled.length > slots) {
    throw new Error(box ? `at most ${slots - 2} points beside a box` : `at most ${slots - 1} points`);
  }
  const xy = new Float32Array(2 * slots), labels = new Int32Array(slots).fill(-2);
  scaled.forEach(([x, y, label], k) => {
    xy.set([x, y], 2 * k);
    labels[k] = label;
  });
  const feeds = {
    points: tensor("float32", xy, [1, 1, slots, 2]),
    labels: tensor("int32", labels, [1, 1, slots]),
  };
  const low = (4 * manifest.image_size) / manifest.patch_size;
  let decoder = await session("decoder");
  if (box && manifest.draw_boxes) {
    decoder = await session("decoder-mask");
    const drawn = drawnBox(corners, low, manifest.patch_size, manifest.draw_boxes);
    feeds.masks = tensor("float32", drawn, [1, 1, low, low]);
    feeds.has_mask = tensor("bool", Uint8Array.of(1), [1, 1]);
  }
  for (const name of decoder.inputNames) feeds[name] ??= embedded[name];
  const out = await decoder.run(feeds), iou = out.iou.data;
  const alone = points.length + (box ? 1 : 0) === 1;
  const scores = alone ? [...iou.slice(1)] : [iou[0]];
  const best = scores.indexOf(Math.max(...scores));
  const chosen = alone ? (candidate ?? best) : 0, index = alone ? chosen + 1 : 0;
  const logits = out.logits.data.subarray(index * low * low, (index + 1) * low * low);
  const mask = enlarge(logits, low, manifest.image_size, frameHw, size || hw);
  return { mask, size: size || hw, scores, chosen };
}

const rooms = { start, embed, predict };
let turn = Promise.resolve(); // a session runs one thing at a time

self.onmessage = ({ data: { id, kind, ...rest } }) => {
  turn = turn.then(async () => {
    const begun = performance.now();
    try {
      const answer = await rooms[kind](rest);
      const took = performance.now() - begun;
      self.postMessage({ id, answer: { ...answer, took } }, answer.mask ? [answer.mask.buffer] : []);
    } catch (error) {
      self.postMessage({ id, error: String(error?.message || error) });
    }
  });
};
