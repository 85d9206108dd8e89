// The keyboard.

/**
 * Listens to keys.
 * plain: actions by key; cross: those with Alt; control: { undo, redo }; next(by): another
 * candidate, false where there is none; save: what Enter in the label does.
 */
export function connectKeys({ plain, cross, control, next, save, closed }) {
  document.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    const typing = event.target.matches("input:not([type=range]), select, textarea");
    if (closed()) return;
    if (event.ctrlKey || event.metaKey) {
      if (key === "z" && !typing) {
        event.preventDefault();
        (event.shiftKey ? control.redo : control.undo)();
      }
      return;
    }
    if (typing) {
      if (key === "enter" && event.target.id === "label") save();
      if (key === "enter" || key === "escape") event.target.blur();
      return;
    }
    if (key === "tab" && event.target.id === "view" && next(event.shiftKey ? -1 : 1)) {
      event.preventDefault();
      return;
    }
    const pressed = event.target.matches("button, a") && (key === "enter" || key === " ");
    const action = (event.altKey ? cross : plain)[key];
    if (action && !pressed) {
      event.preventDefault();
      action();
    }
  });
}
