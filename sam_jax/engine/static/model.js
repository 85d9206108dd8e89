// What the page asks the model, and when.

import { decode, encode, picture } from "./masks.js";
import { get, of, post } from "./server.js";
import { colour } from "./view.js";

const WORDS = "brush and lasso work meanwhile";

/** One question at a time; answers that come too late are dropped. */
export class Model {
  constructor({ editor, page, view, say, complain, changed, ready }) {
    Object.assign(this, { editor, page, view, say, complain, changed, ready });
    this.busy = false;
    this.hoverAt = null;
    this.hoverBusy = false;
  }

  /** Until the photo's prompts are answered; then what was clicked meanwhile is asked. */
  async wait(photo) {
    const { page } = this;
    while (page.photo === photo && !page.ready) {
      let answer;
      try {
        answer = await get(`${of("/api/ready", photo)}&wait=1`);
      } catch (error) {
        this.say(error.message);
        await new Promise((done) => setTimeout(done, 1500));
        continue;
      }
      if (page.photo !== photo) return;
      page.ready = answer.ready && answer.filled !== false;
      const words = answer.ready ? "looking for what is certain" : answer.status;
      this.say(page.ready ? `${page.model.name || "the model"} is ready` : `${words}; ${WORDS}`);
      if (!page.ready) await new Promise((done) => setTimeout(done, 300));
    }
    await this.ready(photo);
    if (this.editor.pending) this.predict();
  }

  async predict() {
    const { editor, page } = this;
    if (!page.ready) {
      this.view.draw();
      return;
    }
    if (this.busy) return; // asked again when the answer is there
    const question = editor.question(encode);
    if (!question) return;
    const [photo, version] = [page.photo, editor.version];
    this.busy = true;
    try {
      const answer = await post("/api/predict", { photo, ...question });
      this.busy = false;
      if (photo !== page.photo) {
        if (editor.pending) this.predict(); // of the photo that is open now
        return;
      }
      if (version === editor.version) {
        editor.answer(answer.candidates);
        this.say(`${Math.round(answer.ms)} ms`);
      } else if (editor.pending) {
        this.predict();
      }
    } catch (error) {
      this.busy = false;
      if (photo === page.photo) this.failed(error);
      else if (editor.pending) this.predict();
    }
  }

  failed(error) {
    if (error.status === 409) {
      this.page.ready = false;
      this.wait(this.page.photo);
    } else if (error.message.startsWith("previous:") && !this.editor.state.painted) {
      this.editor.forget();
      this.predict();
    } else {
      this.editor.withdraw(); // or every later click would be refused with it
      this.complain(error);
      this.changed();
    }
  }

  /** Shows the mask under the pointer; null: none. */
  async hover(point) {
    const { editor, page } = this;
    this.hoverAt = point;
    if (this.hoverBusy || !page.ready || !page.hovering) return;
    if (!point || !editor.empty || page.tool !== "click" || page.box) {
      page.hover = null;
      this.view.draw();
      return;
    }
    this.hoverBusy = true;
    const photo = page.photo;
    try {
      const body = { photo, points: [point], labels: [1], box: null, mask: null, previous: null };
      const [best] = (await post("/api/predict", body)).candidates;
      if (photo === page.photo && editor.empty && this.hoverAt) {
        page.hover = picture(decode(best), editor.height, editor.width, colour(-1), 90);
      }
    } catch {
      page.hover = null; // a preview that fails is no error
    }
    this.hoverBusy = false;
    this.view.draw();
    const next = this.hoverAt;
    if (next && next !== point) setTimeout(() => this.hoverAt && this.hover(this.hoverAt), 40);
  }
}
