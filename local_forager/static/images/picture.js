// The picture of one image: as large as there is room, or small as a link to it.

import { link } from "../base/controls.js";
import { basename, h, splitName } from "../base/dom.js";
import { drawBoxes } from "./boxes.js";

export const splitBadge = (split) => h("span", { class: `split ${split}` }, splitName(split));

// A small picture of a row that opens it; properties: of the link; more: what is written over it.
export const tile = (session, row, about, properties = {}, ...more) =>
  link({ image: row, beside: null }, { class: "tile here", title: about, ...properties },
    h("img", { src: session.rows.address("thumbnail", row), alt: about, decoding: "async" }), ...more);

// The thumbnail at once, the original in its place when it has come; or why it cannot be shown. With
// its name and split below, if it is named.
export function picture(session, image, named) {
  const caption = h("figcaption", { class: "quiet", role: "status" }, "Loading the original…");
  const name = basename(image.name);
  const words = named && h("p", {}, h("bdi", {}, name), " ", splitBadge(image.split));
  const full = h("img", { class: "full", alt: name, src: session.rows.address("original", image.row) });
  const small = h("img", { class: "full preview", alt: "", src: session.rows.address("thumbnail", image.row) });
  const frame = h("div", { class: "frame" });
  if (!image.failed) {
    small.addEventListener("load", () => { if (!frame.childElementCount) frame.append(small); });
  }
  let boxes = null; // once the size of the original is known
  full.addEventListener("load", () => {
    frame.replaceChildren(full, ...(boxes ? [boxes] : []));
    caption.hidden = true;
  });
  let reason = "";
  const fail = (why) => {
    reason ||= why;
    if (full.isConnected) return;
    small.alt = name;
    const shown = small.isConnected ? "This is the thumbnail. The original cannot be shown"
      : "This image cannot be shown";
    caption.textContent = reason ? `${shown}. ${reason}` : `${shown}.`;
  };
  full.addEventListener("error", () => fail(""));
  return {
    element: h("figure", { class: "picture" }, frame, h("div", {}, words, caption)),
    fail,
    draw: (drawn, width, height) => {
      boxes = drawBoxes(drawn, full, width, height);
      if (full.isConnected) frame.append(boxes);
    },
  };
}
