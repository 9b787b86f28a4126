// The images that the person has selected, and the bar that says so and offers what to do with them.

import { form } from "../base/controls.js";
import { button, count, fill, h, keep, kept, plural } from "../base/dom.js";
import { go } from "../base/state.js";
import { openExport } from "./export.js";

const KEEP_AFTER = 300; // milliseconds after a change until the browser keeps the selection

export class Selection {
  constructor(session, rows) {
    const { name, info: { index_id: id } } = session;
    this.session = session;
    this.places = { present: `forager-selection:${name}:${id}`, named: `forager-selections:${id}` };
    this.marks = new Uint8Array(rows); // 1 for each selected row
    this.count = 0;
    this.version = 0; // changes with the selection
    this.undo = null; // { text, act }: what was done last, and what takes it back
    this.keeping = null; // the timer until the selection is kept
    this.restore();
    this.element = h("section", { class: "selection", "aria-label": "Selection", hidden: true });
    addEventListener("pagehide", () => this.keepNow(), { signal: session.ended.signal });
    this.draw();
  }

  // The selection of an earlier visit, if the browser kept one.
  restore() {
    const rows = decode(kept(this.places.present) ?? "").filter((row) => row < this.marks.length);
    for (const row of rows) this.marks[row] = 1;
    this.count = rows.length;
  }

  // The browser keeps the selection, so that a reload does not lose it.
  keepNow() {
    if (this.keeping === null) return;
    clearTimeout(this.keeping);
    this.keeping = null;
    const done = keep(this.places.present, this.count ? encode(this.marks) : null);
    if (!done) this.draw("The browser has no room to keep this selection: a reload loses it.");
  }

  has(row) {
    return this.marks[row] === 1;
  }

  // Adds rows to the selection, or takes them from it.
  set(rows, on = true) {
    const mark = on ? 1 : 0;
    let changed = 0;
    for (const row of rows) {
      if (this.marks[row] === mark || row >= this.marks.length) continue;
      this.marks[row] = mark;
      changed += 1;
    }
    if (!changed) return;
    this.count += on ? changed : -changed;
    this.tell();
  }

  replace(rows) {
    this.marks.fill(0);
    this.count = 0;
    this.set(rows);
    if (!this.count) this.tell();
  }

  rows() {
    const rows = new Int32Array(this.count);
    let place = 0;
    for (let row = 0; row < this.marks.length; row += 1) if (this.marks[row]) rows[place++] = row;
    return rows;
  }

  tell() {
    this.version += 1;
    this.undo = null;
    clearTimeout(this.keeping);
    this.keeping = setTimeout(() => this.keepNow(), KEEP_AFTER);
    this.draw();
    this.session.selectionChanged();
  }

  // Named selections, kept by the browser for this index: [name, a bit per row as base64].
  saved() {
    try {
      const found = JSON.parse(kept(this.places.named) ?? "[]");
      return Array.isArray(found) ? found : [];
    } catch {
      return [];
    }
  }

  save(name) {
    const others = this.saved().filter(([other]) => other !== name);
    this.store([...others, [name, encode(this.marks)]]);
  }

  store(entries) {
    const done = keep(this.places.named, JSON.stringify(entries));
    this.draw(done ? "" : "The browser has no room to keep this selection.");
  }

  // Empties the selection, or puts a kept one in its place; this can be undone.
  exchange(rows, text) {
    const before = this.rows();
    this.replace(rows);
    if (before.length) this.offerUndo(text, () => this.replace(before));
  }

  offerUndo(text, act) {
    this.undo = { text, act };
    this.draw();
    document.getElementById("undo").focus();
  }

  // What was done before another view was asked for stays done.
  forgetUndo() {
    if (!this.undo) return;
    this.undo = null;
    this.draw();
  }

  draw(problem = "") {
    const saved = this.saved();
    const some = this.count > 0;
    this.element.hidden = !some && !saved.length && !this.undo;
    this.element.classList.toggle("over", !some && !saved.length); // moves nothing else
    fill(this.element,
      h("p", { class: "selected-count", role: "status" }, `${count(this.count)} selected`),
      some && [
        h("p", { class: "quiet small", title: "It survives a reload. A link does not contain it." },
          "kept in this browser"),
        button("Show", () => go({ selected: "yes", set: null, view: null, image: null }), { id: "show-selected" }),
        button("Export…", () => openExport(this.session), { id: "export-selected", class: "primary" }),
        button("Clear", () => this.exchange([], `Cleared ${plural(this.count, "image")}.`)),
        this.naming(),
      ],
      saved.length > 0 && this.choosing(saved),
      this.undo && h("p", { class: "inline", role: "status" }, this.undo.text,
        button("Undo", () => this.undo.act(), { id: "undo" })),
      problem !== "" && h("p", { class: "warning", role: "alert" }, problem));
  }

  naming() {
    const input = h("input", {
      type: "text", id: "selection-name", placeholder: "Name", "aria-label": "Name of the selection",
      maxlength: "100",
    });
    const act = () => {
      if (input.value.trim()) this.save(input.value.trim());
    };
    return form(act, { class: "inline" }, input, h("button", { type: "submit", id: "keep-selected" }, "Keep"));
  }

  choosing(saved) {
    const select = h("select", {
      id: "kept-selections", "aria-label": "Kept selections",
      onchange: () => {
        const bits = saved[Number(select.value)]?.[1];
        if (bits) this.exchange(decode(bits), `Replaced ${plural(this.count, "selected image")}.`);
      },
    },
    h("option", { value: "" }, plural(saved.length, "kept selection")),
    saved.map(([name], place) => h("option", { value: String(place) }, name)));
    return h("span", { class: "inline" }, select, button("Delete kept", () => {
      this.store([]);
      this.offerUndo(`Deleted ${plural(saved.length, "kept selection")}.`, () => {
        this.undo = null;
        this.store(saved);
      });
    }));
  }
}

function encode(marks) {
  const bytes = new Uint8Array(Math.ceil(marks.length / 8));
  for (let row = 0; row < marks.length; row += 1) bytes[row >> 3] |= marks[row] << (row & 7);
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

function decode(text) {
  let bytes;
  try {
    bytes = atob(text);
  } catch { // not written by this page
    return [];
  }
  const rows = [];
  for (let place = 0; place < bytes.length; place += 1) {
    const bits = bytes.charCodeAt(place);
    for (let bit = 0; bit < 8; bit += 1) if (bits & (1 << bit)) rows.push(8 * place + bit);
  }
  return rows;
}
