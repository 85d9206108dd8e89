// Asking for things by words, where the model reads.

/** Shows the field where the model takes text; Enter in it asks, the empty field takes it back. */
export function connectAsk(place, input, editor, predict) {
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const text = input.value.trim();
    if (text === editor.state.text) return;
    if (!text && !editor.asked) editor.reset(editor.height, editor.width);
    else {
      editor.ask(text);
      predict();
    }
  });
  return {
    show(reads) {
      place.hidden = !reads;
    },
    follow() {
      if (document.activeElement !== input) input.value = editor.state.text;
    },
  };
}
