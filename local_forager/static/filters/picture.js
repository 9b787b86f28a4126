// A picture as the question: chosen, dropped or pasted. It goes to this page's server only.

import { button, embeddingOf, fill, h } from "../base/dom.js";
import { post, Problem, problemOf } from "../base/requests.js";
import { current, go } from "../base/state.js";

export const isPicture = (like) => /^picture-[0-9a-f]+$/.test(like);

export class PictureSearch {
  constructor(session) {
    this.session = session;
    this.file = h("input", {
      type: "file", accept: "image/*", hidden: true,
      onchange: () => { this.ask(this.file.files[0]); this.file.value = ""; },
    });
    this.button = button("Search by a picture…", () => this.file.click(),
      { id: "search-picture", "aria-describedby": "picture-about" });
    this.about = h("p", { class: "quiet", id: "picture-about" });
    this.status = h("p", { class: "picture-status", role: "status" });
    this.element = h("div", {}, this.button, this.file, this.about, this.status);
    const { signal } = session.ended;
    const watch = (target, name, act) => target.addEventListener(name, act, { signal });
    watch(document, "dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault(); // else the browser would leave the page to show the file
      session.stage.classList.toggle("dropping", this.available);
    });
    watch(document, "dragleave", (event) => {
      if (!event.relatedTarget) session.stage.classList.remove("dropping");
    });
    watch(document, "drop", (event) => {
      session.stage.classList.remove("dropping");
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      this.ask(event.dataTransfer.files[0]);
    });
    watch(document, "paste", (event) => {
      const [file] = event.clipboardData.files;
      if (!file) return;
      event.preventDefault();
      this.ask(file);
    });
  }

  show(info, withOptions) {
    const { available, reason } = info.picture_search;
    this.available = available;
    this.button.disabled = !available;
    fill(this.about, available
      ? "Or drop or paste one. It goes to this server only, and is not stored." : withOptions(reason));
  }

  // Says what is wrong where it can be seen, on a narrow screen too.
  refuse(reason) {
    this.status.textContent = reason;
    this.element.closest("details").open = true;
  }

  // Sorts the images by similarity to the picture in a file.
  async ask(file) {
    if (!file) return;
    if (!this.available) {
      this.refuse("No picture can be compared here.");
      return;
    }
    this.status.textContent = "Reading the picture…";
    try {
      const answer = await post(`/page/${this.session.name}/picture`, {}, file);
      const { like, by, reason } = await answer.json();
      if (!by.length) throw new Problem(reason);
      this.status.textContent = "";
      const state = current();
      const wanted = embeddingOf(this.session.info, state);
      const usable = by.includes(wanted) ? wanted : by[0];
      go({
        like, by: usable === "clip" ? null : usable, text: null, set: null, image: null, view: null,
      });
    } catch (error) {
      this.refuse(problemOf(error).message);
    }
  }
}

// The state that can be shown where the address names a picture: without the picture, and with a note,
// if the server does not have it any more, or cannot compare by this embedding.
export async function withPicture(session, state) {
  if (!isPicture(state.like)) return state;
  const { by, reason } = await session.ask(`picture/${encodeURIComponent(state.like)}`);
  const wanted = embeddingOf(session.info, state);
  if (by.includes(wanted)) return state;
  const why = reason || `Your picture cannot be compared by ${wanted}, only by ${by.join(" and ")}.`;
  return { ...state, like: null, notes: [...state.notes, why] };
}
