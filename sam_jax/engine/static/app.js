// The annotation page: what the keys, the pointer and the buttons do.

import { connectAsk } from "./ask.js";
import { Editor } from "./editor.js";
import { connectKeys } from "./keys.js";
import { encode, decode, picture } from "./masks.js";
import { Model } from "./model.js";
import { drawCandidates, drawKeys, drawMasks } from "./panels.js";
import { get, of, post, setWho, who } from "./server.js";
import { colour, View } from "./view.js";
import { connectPointer } from "./pointer.js";

const $ = (id) => document.getElementById(id);
const view = new View($("view"));
const editor = new Editor(changed);
const page = {
  photo: null, photos: [], saved: [], ready: false, chosen: null, removed: [], drafts: new Map(),
  tool: "click", radius: 12, background: false, hovering: true, hover: null, cursor: null,
  box: null, lasso: null, cross: null, hint: 30, openedAt: 0, model: {},
};
let shown = { version: -1, current: null };
let failed = null;
let errorTimer = null;
let statusWords = "";

function current() {
  if (shown.version !== editor.version) {
    const mask = editor.mask;
    const made = mask ? picture(mask, editor.height, editor.width, colour(-1), 90) : null;
    shown = { version: editor.version, current: made };
  }
  return shown.current;
}

view.scene = () => ({
  saved: page.saved.map((one) => ({ ...one, chosen: one.id === page.chosen })),
  hover: editor.empty ? page.hover : null,
  current: current(),
  points: editor.state.points,
  labels: editor.state.labels,
  pending: editor.pending,
  box: page.box || editor.state.box,
  lasso: page.lasso,
  cursor: page.tool === "brush" || page.tool === "eraser" ? page.cursor : null,
  radius: page.radius,
  cross: page.cross,
});

function changed() {
  drawCandidates($("candidates"), editor);
  $("label").value = editor.state.label;
  asking.follow();
  $("save").disabled = !editor.area;
  $("drop").disabled = editor.empty;
  $("undo").disabled = !editor.past.length && !page.removed.length;
  $("redo").disabled = !editor.future.length;
  view.draw();
}

function say(words) {
  statusWords = words;
  $("status").textContent = words;
}

function complain(error, again = null) {
  $("error").textContent = error.message;
  failed = again;
  $("retry").hidden = !again;
  clearTimeout(errorTimer);
  if (!again) errorTimer = setTimeout(() => ($("error").textContent = ""), 6000);
}

function calm() {
  $("error").textContent = "";
  $("retry").hidden = true;
  failed = null;
}

const model = new Model({ editor, page, view, say, complain, changed, ready: modelIsReady });
const predict = () => model.predict();
const hover = (point) => model.hover(point);

const asking = connectAsk($("ask"), $("phrase"), editor, predict);

async function modelIsReady(photo) {
  await loadMasks(photo).catch(complain);
  page.model = (await get("/api/info").catch(() => page)).model;
  asking.show(page.model.reads);
}

// Photos

async function loadPhotos() {
  page.photos = (await get("/api/photos")).photos;
  const select = $("photos");
  select.replaceChildren(
    ...page.photos.map(({ name, masks, done }) => {
      const option = document.createElement("option");
      option.value = name;
      option.textContent = `${done ? "\u2713 " : ""}${name} (${masks})`;
      return option;
    }),
  );
  if (page.photo) select.value = page.photo;
  const done = page.photos.filter((one) => one.done).length;
  $("progress").textContent = `${done} of ${page.photos.length} done`;
  const own = page.photos.find((one) => one.name === page.photo);
  $("done").setAttribute("aria-pressed", String(Boolean(own?.done)));
}

async function loadMasks(photo) {
  const about = await get(of("/api/photo", photo));
  if (page.photo !== photo) return about;
  const hidden = new Set(page.saved.filter((one) => !one.visible).map((one) => one.id));
  page.saved = about.masks.map((one, k) => {
    const rgb = colour(k);
    const [height, width] = one.size;
    const made = picture(decode(one), height, width, rgb, 80);
    return { ...one, rgb, picture: made, visible: !hidden.has(one.id) };
  });
  drawList();
  return about;
}

async function open(photo) {
  keepDraft();
  page.photo = photo;
  page.ready = false;
  page.chosen = null;
  page.saved = [];
  page.removed = [];
  page.hover = page.box = page.lasso = page.cross = null;
  page.openedAt = performance.now();
  history.replaceState(null, "", `#${encodeURIComponent(photo)}`);
  editor.reset();
  view.image = null;
  try {
    const about = await get(of("/api/photo", photo));
    const image = new Image();
    image.src = of("/api/image", photo);
    await image.decode();
    if (page.photo !== photo) return;
    editor.reset(about.height, about.width);
    view.show(image, about.width, about.height);
    const draft = page.drafts.get(photo);
    if (draft) Object.assign(editor, draft, { version: editor.version + 1 });
    await loadPhotos();
    await loadMasks(photo);
    changed();
    model.wait(photo);
  } catch (error) {
    complain(error);
    await loadPhotos().catch(() => {});
  }
}

function keepDraft() {
  if (!page.photo || !view.image) return; // nothing is drawn on what has not been loaded
  if (editor.empty) page.drafts.delete(page.photo);
  else {
    const { state, past, future, pending, last, begun } = editor;
    page.drafts.set(page.photo, { state, past, future, pending, last, begun });
  }
}

function step(by) {
  const at = page.photos.findIndex((one) => one.name === page.photo);
  const next = page.photos[(at + by + page.photos.length) % page.photos.length];
  if (next && next.name !== page.photo) open(next.name);
}

// Masks

async function save() {
  if (!editor.area || page.saving) return;
  const { photo } = page;
  const { points, labels, box, text, strokes, label, candidates, chosen, painted, replaces } = editor.state;
  const body = {
    photo,
    mask: encode(editor.mask, editor.height, editor.width),
    prompts: { points, labels, box, text, strokes },
    seconds: Math.round(editor.tick() * 10) / 10,
    label,
    replaces,
    score: painted ? null : candidates[chosen]?.score ?? null,
  };
  page.saving = true;
  try {
    const { id } = await post("/api/masks", body);
    calm();
    if (page.photo === photo) {
      editor.reset(editor.height, editor.width);
      page.openedAt = performance.now();
      page.chosen = id;
    } else {
      page.drafts.delete(photo); // another photo was opened meanwhile
    }
    await Promise.all([loadMasks(page.photo), loadPhotos()]);
    changed();
    say("saved");
  } catch (error) {
    complain(new Error(`not saved: ${error.message}`), save);
  } finally {
    page.saving = false;
  }
}

function drop() {
  editor.reset(editor.height, editor.width);
  page.openedAt = performance.now();
  changed();
}

async function remove(id) {
  try {
    await post("/api/masks/remove", { photo: page.photo, id });
    page.removed.push(id);
    page.chosen = null;
    if (editor.state.replaces === id) editor.state.replaces = null; // a mask of its own, then
    await Promise.all([loadMasks(page.photo), loadPhotos()]);
    changed();
    say("removed; Ctrl+Z brings it back");
  } catch (error) {
    complain(error);
  }
}

async function undo() {
  if (editor.undo() || !page.removed.length) return;
  const id = page.removed.pop();
  try {
    await post("/api/masks/restore", { photo: page.photo, id });
    page.chosen = id;
    await Promise.all([loadMasks(page.photo), loadPhotos()]);
    changed();
  } catch (error) {
    complain(error);
  }
}

function correct(id) {
  const mask = page.saved.find((one) => one.id === id);
  if (!mask) return;
  mask.visible = false;
  editor.correct(decode(mask), id, mask.label);
  setTool("brush");
  drawList();
}

async function markDone() {
  const done = $("done").getAttribute("aria-pressed") !== "true";
  const seconds = Math.min(Math.round((performance.now() - page.openedAt) / 1000), 86400);
  try {
    await post("/api/done", { photo: page.photo, done, seconds });
    await loadPhotos();
  } catch (error) {
    complain(error);
  }
}

async function reload() {
  page.ready = false;
  say("loading the model");
  try {
    const { hash } = await post("/api/reload", {});
    say(`model ${hash} is loaded`);
  } catch (error) {
    complain(error);
  }
  model.wait(page.photo);
}

function drawList() {
  $("count").textContent = page.saved.length ? `(${page.saved.length})` : "";
  drawMasks($("masks"), page.saved, page.chosen, {
    choose(id) {
      page.chosen = page.chosen === id ? null : id;
      drawList();
    },
    toggle(one) {
      one.visible = !one.visible;
      drawList();
    },
    remove,
    correct,
  });
  view.draw();
}

// Tools

function setTool(name) {
  page.tool = name;
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  }
  $("view").classList.toggle("paint", name === "brush" || name === "eraser");
  page.hover = null;
  view.draw();
}

function setRadius(value) {
  page.radius = Math.min(120, Math.max(1, value));
  $("size").value = page.radius;
  view.draw();
}

function toggle(id, field) {
  page[field] = !page[field];
  $(id).setAttribute("aria-pressed", String(page[field]));
  if (field === "hovering") page.hover = null;
  view.draw();
}

function choose(k) {
  editor.choose(k);
}

connectPointer($("view"), view, editor, page, { hover, predict });

// Keys

function moveCross(dx, dy) {
  const far = (window.devicePixelRatio || 1) * (12 / view.scale);
  const [x, y] = page.cross || [view.width / 2, view.height / 2];
  page.cross = [
    Math.min(view.width - 1, Math.max(0, x + dx * far)),
    Math.min(view.height - 1, Math.max(0, y + dy * far)),
  ];
  hover(page.cross);
  view.draw();
}

function clickCross(label) {
  if (!page.cross) return;
  page.hover = null;
  editor.click(page.cross.map(Math.floor), label);
  predict();
}

connectKeys({
  plain: {
    c: () => setTool("click"), b: () => setTool("brush"), e: () => setTool("eraser"),
    l: () => setTool("lasso"), x: () => toggle("background", "background"),
    v: () => toggle("hover", "hovering"), "[": () => setRadius(Math.floor(page.radius / 1.25)),
    "]": () => setRadius(Math.ceil(page.radius * 1.25)), 0: () => view.fit(),
    1: () => choose(0), 2: () => choose(1), 3: () => choose(2), n: () => step(1),
    p: () => step(-1), arrowright: () => step(1), arrowleft: () => step(-1), d: markDone,
    h: () => $("keys").showModal(), enter: save, escape: drop,
    delete: () => page.chosen && remove(page.chosen),
    backspace: () => page.chosen && remove(page.chosen),
    r: () => page.chosen && correct(page.chosen), t: () => $("phrase").focus(),
  },
  cross: {
    arrowleft: () => moveCross(-1, 0), arrowright: () => moveCross(1, 0),
    arrowup: () => moveCross(0, -1), arrowdown: () => moveCross(0, 1),
    enter: () => clickCross(1), backspace: () => clickCross(0),
  },
  control: { undo, redo: () => editor.redo() },
  next(by) {
    const count = editor.state.candidates.length;
    if (count < 2) return false;
    editor.choose((editor.state.chosen + by + count) % count);
    return true;
  },
  save,
  closed: () => $("keys").open,
});

// Buttons

for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => setTool(button.dataset.tool));
}
const CLICKS = {
  previous: () => step(-1), next: () => step(1), done: markDone, save, drop, undo, redo: () => editor.redo(), reload,
  help: () => $("keys").showModal(), close: () => $("keys").close(), fit: () => view.fit(),
  background: () => toggle("background", "background"), hover: () => toggle("hover", "hovering"),
  retry: () => failed && failed(),
};
for (const [id, action] of Object.entries(CLICKS)) $(id).addEventListener("click", () => action());
$("photos").addEventListener("change", () => open($("photos").value));
$("label").addEventListener("input", () => editor.setLabel($("label").value));
$("size").addEventListener("input", () => setRadius(Number($("size").value)));
$("light").addEventListener("input", () => {
  view.light = Number($("light").value);
  view.draw();
});
$("who").value = who();
$("who").addEventListener("change", () => setWho($("who").value));
window.addEventListener("beforeunload", (event) => {
  keepDraft();
  if (page.drafts.size) event.preventDefault();
});

setInterval(() => {
  const seconds = editor.empty ? 0 : (performance.now() - editor.begun) / 1000;
  $("hint").hidden = seconds < page.hint;
}, 500);

window.samAnnotate = {
  get photo() { return page.photo; },
  get ready() { return page.ready; },
  get candidates() { return editor.state.candidates.length; },
  get chosen() { return editor.state.chosen; },
  get area() { return editor.area; },
  get pending() { return editor.pending || model.busy; },
  get saved() { return page.saved.length; },
  get labels() { return editor.state.labels; },
  get strokes() { return editor.state.strokes.length; },
  get zoom() { return view.scale; },
  get status() { return statusWords; },
  get hovered() { return page.hover !== null; },
  pagePoint(x, y) { return view.page([x, y]); },
};

async function start() {
  drawKeys($("keytable"));
  try {
    const info = await get("/api/info");
    page.model = info.model;
    page.hint = info.hint_seconds;
    await loadPhotos();
    const wanted = decodeURIComponent(location.hash.slice(1));
    const known = page.photos.find((one) => one.name === wanted);
    const first = known || page.photos.find((one) => !one.done) || page.photos[0];
    if (first) await open(first.name);
  } catch (error) {
    complain(error, start);
  }
}

start();
