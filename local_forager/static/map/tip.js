// The small picture beside the point under the pointer.

import { basename, h, labelText, splitName } from "../base/dom.js";

const WIDTH = 196; // CSS pixels, with some room
const HEIGHT = 190;

export class Tip {
  constructor(session) {
    this.session = session;
    this.element = h("div", { class: "tip", hidden: true });
    this.row = -1;
  }

  // Shows a row, or nothing for -1.
  show(row) {
    const { rows } = this.session;
    this.row = row;
    this.element.hidden = row < 0;
    if (row < 0) return;
    const text = h("span", {});
    const tell = () => {
      const known = rows.known(row);
      if (!known || this.row !== row) return;
      text.replaceChildren(h("bdi", {}, basename(known.name)), h("span", { class: "quiet" },
        [splitName(known.split), ...known.labels.map(labelText)].join(" · ")));
    };
    this.element.replaceChildren(h("img", { src: rows.address("thumbnail", row), alt: "" }), text);
    tell();
    rows.learn([row], tell);
  }

  // Beside a point of a box of this size.
  place(x, y, width, height) {
    const left = x > width / 2 ? x - WIDTH : x + 16;
    const top = Math.max(4, Math.min(height - HEIGHT, y - 80));
    this.element.style.transform = `translate(${Math.max(4, left)}px, ${top}px)`;
  }
}
