// Mouse, pen and fingers on the photo.

const CLICK = 5; // pixels of the page that a click may move

/** Left adds, right removes, drag draws a box or paints; wheel, middle button and two fingers move. */
export function connectPointer(canvas, view, editor, page, { hover, predict }) {
  const fingers = new Map();
  let down = null;
  let space = false;

  const floor = ([x, y]) => [Math.floor(x), Math.floor(y)];
  const painting = () => page.tool === "brush" || page.tool === "eraser";

  function press(event) {
    canvas.focus();
    if (!view.image) return;
    canvas.setPointerCapture?.(event.pointerId);
    if (event.pointerType === "touch") fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.size === 2) {
      cancel();
      down = { kind: "pinch", ...spread() };
      return;
    }
    const at = view.photo(event.clientX, event.clientY);
    const from = [event.clientX, event.clientY];
    if (event.button === 1 || space) {
      down = { kind: "pan", from };
      canvas.classList.add("grab");
    } else if (painting() && event.button === 0) {
      down = { kind: "stroke" };
      editor.startStroke(page.tool, at, page.radius);
    } else if (page.tool === "lasso" && event.button === 0) {
      down = { kind: "lasso", value: event.shiftKey || page.background ? 0 : 1 };
      page.lasso = [at];
    } else {
      const label = event.button === 2 || page.background ? 0 : 1;
      down = { kind: "click", at, from, label };
    }
  }

  function move(event) {
    const at = view.photo(event.clientX, event.clientY);
    page.cursor = at;
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (!down) {
      if (event.pointerType !== "touch") hover(view.inside(at) ? floor(at) : null);
      if (painting()) view.draw();
      return;
    }
    if (down.kind === "pinch" && fingers.size === 2) pinch();
    else if (down.kind === "pan") pan(event);
    else if (down.kind === "stroke") editor.extendStroke(at);
    else if (down.kind === "lasso") page.lasso.push(at);
    else if (down.kind === "click") drag(event, at);
    view.draw();
  }

  function pan(event) {
    view.pan(event.clientX - down.from[0], event.clientY - down.from[1]);
    down.from = [event.clientX, event.clientY];
  }

  function drag(event, at) {
    const far = Math.hypot(event.clientX - down.from[0], event.clientY - down.from[1]);
    if (far > CLICK && down.label) {
      const [x0, x1] = [down.at[0], at[0]].sort((a, b) => a - b);
      const [y0, y1] = [down.at[1], at[1]].sort((a, b) => a - b);
      const clip = (v, most) => Math.min(most, Math.max(0, v));
      page.box = [clip(x0, view.width), clip(y0, view.height), clip(x1, view.width), clip(y1, view.height)];
    }
  }

  function release(event) {
    fingers.delete(event.pointerId);
    const was = down;
    down = null;
    canvas.classList.remove("grab");
    if (!was) return;
    if (was.kind === "lasso") {
      const points = page.lasso;
      page.lasso = null;
      if (points.length > 2) editor.lasso(points, was.value);
    } else if (was.kind === "click") {
      const box = page.box;
      page.box = null;
      if (box && box[2] - box[0] >= 1 && box[3] - box[1] >= 1) {
        page.hover = null;
        editor.drawBox(box);
        predict();
      } else if (!box && view.inside(was.at)) {
        page.hover = null;
        editor.click(floor(was.at), was.label);
        predict();
      }
    }
    view.draw();
  }

  function cancel() {
    if (down?.kind === "stroke") editor.undo();
    page.box = page.lasso = null;
    down = null;
  }

  function spread() {
    const [[ax, ay], [bx, by]] = [...fingers.values()];
    return { far: Math.hypot(ax - bx, ay - by), middle: [(ax + bx) / 2, (ay + by) / 2] };
  }

  function pinch() {
    const now = spread();
    view.pan(now.middle[0] - down.middle[0], now.middle[1] - down.middle[1]);
    view.zoom(now.far / Math.max(down.far, 1), ...now.middle);
    Object.assign(down, now);
  }

  canvas.addEventListener("pointerdown", press);
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", (event) => {
    fingers.delete(event.pointerId);
    cancel();
  });
  canvas.addEventListener("pointerleave", () => {
    page.cursor = null;
    hover(null);
    view.draw();
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      view.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
    },
    { passive: false },
  );
  document.addEventListener("keydown", (event) => {
    if (event.key === " " && event.target === canvas) {
      event.preventDefault();
      space = true;
    }
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === " ") space = false;
  });
}
