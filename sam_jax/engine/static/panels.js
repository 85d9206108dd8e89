// The lists beside the photo: candidates, saved masks, keys.

import { bounds, picture } from "./masks.js";
import { colour } from "./view.js";

const KEYS = [
  ["Click, right click, drag", "foreground, background, box"],
  ["T", "words for the object, where the model reads"],
  ["C  B  E  L", "click, brush, eraser, lasso (Shift removes)"],
  ["[  ]", "smaller, larger brush"],
  ["Tab or 1 2 3", "another candidate"],
  ["Enter", "save the mask"],
  ["Escape", "drop what is not saved"],
  ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo; removed masks come back too"],
  ["Delete, R", "remove, correct the chosen mask"],
  ["N or Right, P or Left", "next, previous photo; nothing is lost"],
  ["D", "this photo is done"],
  ["Wheel, Space+drag, 0", "zoom, move, whole photo"],
  ["X, V", "clicks are background, hover preview"],
  ["Alt+arrows, Alt+Enter, Alt+Backspace", "a cross to aim with, foreground, background"],
];

function element(name, fields = {}, ...children) {
  const made = Object.assign(document.createElement(name), fields);
  made.append(...children);
  return made;
}

/** Buttons with a small picture of each candidate and its score. */
export function drawCandidates(place, editor) {
  const { candidates, chosen, painted } = editor.state;
  if (!candidates.length) {
    const words = painted ? "painted by hand" : editor.pending ? "waiting for the model" : "click on something";
    place.replaceChildren(element("span", { className: "empty", textContent: words }));
    return;
  }
  place.replaceChildren(
    ...candidates.map((one, k) => {
      const small = thumbnail(one.mask, editor.height, editor.width);
      const button = element("button", { title: `Candidate ${k + 1}` }, small, one.score.toFixed(2));
      button.setAttribute("aria-pressed", String(k === chosen && !painted));
      button.addEventListener("click", () => editor.choose(k));
      return button;
    }),
  );
}

function thumbnail(mask, height, width) {
  const canvas = element("canvas", { width: 72, height: 48 });
  const box = bounds(mask, height, width);
  if (!box) return canvas;
  const scale = Math.min(72 / width, 48 / height);
  const made = picture(mask, height, width, colour(0), 255);
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, (72 - width * scale) / 2, (48 - height * scale) / 2);
  context.fillStyle = "#333";
  context.fillRect(0, 0, width, height);
  context.drawImage(made.canvas, made.x, made.y);
  return canvas;
}

/** A line for each saved mask. */
export function drawMasks(place, masks, chosen, actions) {
  place.replaceChildren(
    ...masks.map((one, k) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = `rgb(${one.rgb.join(",")})`;
      const lock = one.locked ? "\u{1F512} " : "";
      const name = element("button", {
        className: "name",
        title: `${one.stage}, by ${one.who}`,
        textContent: `${lock}${one.label || `mask ${k + 1}`}`,
      });
      name.addEventListener("click", () => actions.choose(one.id));
      const line = element("li", { className: one.id === chosen ? "chosen" : "" }, swatch, name);
      const add = (text, title, action) => {
        const button = element("button", { className: "small", textContent: text, title });
        button.setAttribute("aria-label", title);
        button.addEventListener("click", action);
        line.append(button);
      };
      if (one.id === chosen) {
        add("Correct", "Correct this mask (R)", () => actions.correct(one.id));
        add(one.locked ? "Reject" : "Remove", "Take this mask away (Delete)", () => actions.remove(one.id));
      }
      add(one.visible ? "Hide" : "Show", "Show or hide this mask", () => actions.toggle(one));
      return line;
    }),
  );
}

export function drawKeys(table) {
  table.replaceChildren(
    ...KEYS.map(([keys, what]) =>
      element("tr", {}, element("td", { textContent: keys }), element("td", { textContent: what })),
    ),
  );
}
