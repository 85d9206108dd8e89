// The page: a photo, the pointer, and the mask under it.

const $ = (name) => document.getElementById(name);
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let count = 0;

worker.onmessage = ({ data: { id, answer, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(answer);
};
worker.onerror = (event) => say(`the model could not be started: ${event.message || "see the console"}`);

function call(kind, rest = {}, moved = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++count, { resolve, reject });
    worker.postMessage({ id: count, kind, ...rest }, moved);
  });
}

const state = { ready: false, hw: null, points: [], box: null, candidate: null, shown: null };
const times = []; // milliseconds from asking to answer, of the last prompts
const say = (text) => { $("status").textContent = text; };

const started = call("start").then((how) => {
  const where = how.provider === "webgpu" ? "WebGPU"
    : `WebAssembly, ${how.threads} thread${how.threads > 1 ? "s" : ""}`;
  say(`ready (${where})`);
}).catch((error) => { say(`the model could not be started: ${error.message}`); throw error; });

async function open(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    return say(`${blob.name || "this file"} is not a picture that this browser can read`);
  }
  state.ready = false;
  clear();
  const { width, height } = bitmap, whole = new OffscreenCanvas(width, height).getContext("2d");
  whole.drawImage(bitmap, 0, 0);
  state.hw = [height, width];
  state.bitmap = bitmap;
  $("hint").hidden = true;
  $("frame").hidden = false;
  fit();
  say("reading the photo ...");
  const rgba = whole.getImageData(0, 0, width, height).data;
  try {
    await started;
    const { took } = await call("embed", { rgba, hw: state.hw }, [rgba.buffer]);
    state.ready = true;
    say(`photo read in ${(took / 1000).toFixed(1)} s; point at something`);
  } catch (error) {
    say(`the photo could not be read: ${error.message}`);
  }
}

function fit() {
  if (!state.hw) return;
  const [height, width] = state.hw, room = $("stage").getBoundingClientRect();
  const scale = Math.min(room.width / width, room.height / height, 4);
  for (const canvas of [$("photo"), $("mask")]) {
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
  }
  $("photo").getContext("2d").drawImage(state.bitmap, 0, 0, $("photo").width, $("photo").height);
}

/** A prompt's mask and scores; `size` [height, width], of the photo if not given. */
async function ask(points, box = null, size = null, candidate = null) {
  if (!state.ready) throw new Error("no photo has been read yet");
  const begun = performance.now();
  const answer = await call("predict", { points, box, size, candidate });
  times.push(performance.now() - begun);
  if (times.length > 200) times.shift();
  return answer;
}

let wanted = null, busy = false;
let since = 0; // how often everything was cleared: an answer from before that is not shown

/** Shows the mask of the newest of the prompts that came while the last one was computed. */
async function show(points, box) {
  wanted = { points, box, since };
  if (busy) return;
  busy = true;
  while (wanted && state.ready) {
    const now = wanted;
    wanted = null;
    try {
      const size = [$("mask").height, $("mask").width];
      const answer = await ask(now.points, now.box, size, state.candidate);
      if (now.since !== since) continue;
      state.shown = { ...now, ...answer };
      draw();
      say(`${Math.round(middle(times))} ms a mask, predicted IoU `
        + state.shown.scores.map((s) => s.toFixed(2)).join(" / "));
    } catch (error) {
      say(error.message);
    }
  }
  busy = false;
}

const middle = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

function draw() {
  const canvas = $("mask"), context = canvas.getContext("2d"), shown = state.shown;
  context.clearRect(0, 0, canvas.width, canvas.height);
  const chosen = shown && shown.scores.length > 1 ? shown.scores : [];
  $("candidates").replaceChildren(...chosen.map((score, k) => {
    const button = document.createElement("button");
    button.textContent = `${k + 1}: ${score.toFixed(2)}`;
    button.ariaPressed = String(k === shown.chosen);
    button.onclick = () => choose(k);
    return button;
  }));
  $("save").disabled = !shown;
  if (!shown || shown.size[0] !== canvas.height || shown.size[1] !== canvas.width) return;
  const [height, width] = shown.size, picture = context.createImageData(width, height);
  const words = new Uint32Array(picture.data.buffer), mask = shown.mask;
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i]) continue;
    const x = i % width;
    const edge = !x || x === width - 1 || !mask[i - 1] || !mask[i + 1] || !mask[i - width] || !mask[i + width];
    words[i] = edge ? 0xffffffff : 0x80ff901e;
  }
  context.putImageData(picture, 0, 0);
  const ratio = [width / state.hw[1], height / state.hw[0]];
  for (const [x, y, label] of state.points) {
    context.beginPath();
    context.arc(x * ratio[0], y * ratio[1], 6, 0, 2 * Math.PI);
    context.fillStyle = label ? "#2ecc71" : "#ff5c5c";
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = "#fff";
    context.stroke();
  }
  if (state.box) outline(state.box);
}

function outline([x0, y0, x1, y1]) {
  const context = $("mask").getContext("2d");
  const [sx, sy] = [$("mask").width / state.hw[1], $("mask").height / state.hw[0]];
  context.lineWidth = 2;
  context.strokeStyle = "#ffd76a";
  context.strokeRect(x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy);
}

function again() {
  const empty = !state.points.length && !state.box;
  for (const name of ["undo", "clear"]) $(name).disabled = empty;
  if (!empty) return show(state.points, state.box);
  since += 1;
  state.shown = wanted = null;
  draw();
}

function clear() {
  state.points = [];
  state.box = state.candidate = null;
  again();
}

function undo() {
  if (state.points.length) state.points = state.points.slice(0, -1);
  else state.box = null;
  state.candidate = null;
  again();
}

function choose(k) {
  if (!state.shown || k >= state.shown.scores.length) return;
  state.candidate = k;
  show(state.shown.points, state.shown.box);
}

function place(event) {
  const room = $("mask").getBoundingClientRect(), [height, width] = state.hw;
  const at = (value, from, span, size) =>
    Math.min(size - 0.01, Math.max(0, ((value - from) / span) * size));
  return [
    at(event.clientX, room.left, room.width, width), at(event.clientY, room.top, room.height, height),
  ];
}

let down = null;

$("mask").onpointerdown = (event) => {
  down = { x: event.clientX, y: event.clientY, at: place(event) };
  $("mask").setPointerCapture(event.pointerId);
};
$("mask").onpointermove = (event) => {
  if (!state.ready) return;
  if (down) {
    if (far(event)) {
      draw();
      outline(span(down.at, place(event)));
    }
  } else if (!state.points.length && !state.box) {
    state.candidate = null;
    show([[...place(event), 1]], null);
  }
};
$("mask").onpointerup = (event) => {
  if (!down || !state.ready) return void (down = null);
  const [a, b] = [down.at, place(event)];
  state.candidate = null;
  if (far(event)) [state.points, state.box] = [[], span(a, b)];
  else state.points = [...state.points, [...b, event.shiftKey || event.button === 2 ? 0 : 1]];
  down = null;
  again();
};
$("mask").oncontextmenu = (event) => event.preventDefault();
const far = (event) => Math.hypot(event.clientX - down.x, event.clientY - down.y) > 6;
const span = (a, b) => [
  Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1]),
];

async function save() {
  const { points, box, chosen } = state.shown;
  const { mask, size } = await ask(points, box, null, chosen);
  const canvas = new OffscreenCanvas(size[1], size[0]), context = canvas.getContext("2d");
  const picture = context.createImageData(size[1], size[0]), words = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < mask.length; i++) words[i] = mask[i] ? 0xffffffff : 0xff000000;
  context.putImageData(picture, 0, 0);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await canvas.convertToBlob());
  link.download = "mask.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

$("file").onchange = () => $("file").files[0] && open($("file").files[0]);
$("example").onclick = async () => open(await (await fetch("example.jpg")).blob());
$("undo").onclick = undo;
$("clear").onclick = clear;
$("save").onclick = save;
window.onresize = () => { fit(); again(); };
window.onkeydown = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "z") undo();
  else if (event.key === "Escape") clear();
  else if ("123".includes(event.key)) choose(Number(event.key) - 1);
};
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("stage").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
}

window.sam = { open, ask, times, state, started }; // for scripts and tests
