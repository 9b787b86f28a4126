// The ring around the point under the pointer, and the small picture beside it.

import { basename, h, labelText, splitName } from "../base/dom.js";

const WIDTH = 196; // CSS pixels, with some room
const HEIGHT = 190;
const EDGE = 5; // CSS pixels from a point to the outside of its ring

export class Tip {
  constructor(session) {
    this.session = session;
    this.element = h("div", { class: "tip", hidden: true });
    this.ring = h("span", { class: "ring", hidden: true });
    this.row = -1;
  }

  // Shows a row, or nothing for -1.
  show(row) {
    const { rows } = this.session;
    this.row = row;
    this.element.hidden = this.ring.hidden = row < 0;
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

  // Beside a point of this radius in a box, in CSS pixels.
  place(x, y, radius, { clientWidth: width, clientHeight: height }) {
    const left = x > width / 2 ? x - WIDTH : x + 16;
    const top = Math.max(4, Math.min(height - HEIGHT, y - 80));
    this.ring.style.width = `${2 * (radius + EDGE)}px`;
    this.ring.style.transform = `translate(${x}px, ${y}px) translate(-50%, -50%)`;
    this.element.style.transform = `translate(${Math.max(4, left)}px, ${top}px)`;
  }
}
