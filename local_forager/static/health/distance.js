// The distance of near duplicates: a slider, what it gives at once, and pairs as examples.

import { basename, button, fill, h, plural, splitName } from "../base/dom.js";
import { tile } from "../images/picture.js";

const DECIMALS = 8; // of a distance in the address; others are cut off
const DIGITS = 3; // of the distances that the slider gives

const text = (distance) => distance.toFixed(DECIMALS).replace(/\.?0+$/, "");

export class Distance {
  // chosen(distance, done): called with the text of a distance, null for the default; done is false
  // while the slider moves.
  constructor(session, chosen) {
    this.session = session;
    this.chosen = chosen;
    this.slider = h("input", {
      type: "range", id: "near-slider", min: "0",
      "aria-label": "Distance of near duplicates", "aria-describedby": "near-found",
      oninput: () => this.slide(false), onchange: () => this.slide(true),
    });
    this.number = h("input", {
      type: "number", id: "near-distance", min: "0", max: "2", step: "any",
      "aria-label": "Distance of near duplicates, as a number", "aria-describedby": "near-reach",
      onchange: () => chosen(this.number.value === "" ? null : text(Number(this.number.value)), true),
    });
    this.reset = button("", () => chosen(null, true), { id: "near-default" });
    this.found = h("p", { role: "status", id: "near-found", class: "distance-found" });
    this.reach = h("p", { class: "quiet", id: "near-reach" });
    this.pairs = h("ul", { class: "pairs", role: "list", "aria-label": "Pairs of images at this distance" });
    this.element = h("section", { class: "distance-choice", "aria-labelledby": "near-title", hidden: true },
      h("h3", { id: "near-title" }, "Distance of near duplicates"),
      h("div", { class: "inline" }, this.slider, this.number, this.reset),
      this.found, this.pairs, this.reach);
  }

  slide(done) {
    const distance = text(this.slider.valueAsNumber);
    this.number.value = this.slider.ariaValueText = distance;
    this.chosen(distance, done);
  }

  // A report of the page's API. What the person is moving stays as it is.
  show({ near, findings }) {
    const { distance, default: usual, limit, reach, examples } = near;
    this.element.hidden = limit === 0;
    if (!limit) return;
    this.slider.step = 10 ** (Math.ceil(Math.log10(limit)) - DIGITS);
    this.slider.max = limit;
    const short = distance === usual ? String(Number(usual.toPrecision(3))) : text(distance);
    if (document.activeElement !== this.number) this.number.value = short;
    if (document.activeElement !== this.slider) this.slider.value = distance;
    this.slider.ariaValueText = short;
    this.reset.textContent = `Default: ${Number(usual.toPrecision(3))}`;
    const [close, leak] = ["near", "leak"].map((name) => findings.find(({ set }) => set === name));
    this.tell(`${plural(close.images, "image")} in ${plural(close.groups, "group")}; `
      + `in train and validation: ${plural(leak.images, "image")}.`);
    this.reach.textContent = reach[0].toUpperCase() + reach.slice(1);
    fill(this.pairs, examples.map((pair) => this.example(pair)));
  }

  // What the distance gives, or why it cannot be shown.
  tell(sentence) {
    if (this.found.textContent !== sentence) this.found.textContent = sentence;
  }

  example({ distance, images }) {
    const far = distance.toFixed(3);
    return h("li", {}, h("span", { class: "pair" }, images.map((image, place) =>
      tile(this.session, image.row, `${basename(image.name)}, ${splitName(image.split)}, `
        + `${place ? "second" : "first"} of two images with the distance ${far}`))),
    h("span", { class: "distance", "aria-hidden": "true" }, far));
  }
}
