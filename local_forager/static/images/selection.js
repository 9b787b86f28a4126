// The images that the person has selected, and the bar that says so and offers what to do with them.

import { count, h, keep, kept, plural } from "../dom.js";
import { openExport } from "./export.js";
import { go } from "../state.js";

export class Selection {
  constructor(session, rows) {
    this.session = session;
    this.marks = new Uint8Array(rows); // 1 for each selected row
    this.count = 0;
    this.version = 0; // changes with the selection
    this.watchers = new Set();
    this.element = h("section", { class: "selection", "aria-label": "Selection", hidden: true });
    this.draw();
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
    this.draw();
    for (const watcher of this.watchers) watcher();
  }

  // Named selections, kept by the browser for this index: [name, a bit per row as base64].
  saved() {
    try {
      const found = JSON.parse(kept(this.place()) ?? "[]");
      return Array.isArray(found) ? found : [];
    } catch {
      return [];
    }
  }

  place() {
    return `forager-selections:${this.session.info.index_id}`;
  }

  save(name) {
    const others = this.saved().filter(([other]) => other !== name);
    this.store([...others, [name, encode(this.marks)]]);
  }

  store(entries) {
    const done = keep(this.place(), JSON.stringify(entries));
    this.draw(done ? "" : "The browser has no room to keep this selection.");
  }

  draw(problem = "") {
    const saved = this.saved();
    const some = this.count > 0;
    this.element.hidden = !some && !saved.length;
    const button = (text, act, kind = null) =>
      h("button", { type: "button", onclick: act, class: kind }, text);
    const acts = !some ? [] : [
      button("Show", () => go({ selected: "yes", set: null, view: null, image: null })),
      button("Export…", () => openExport(this.session), "primary"),
      button("Clear", () => this.replace([])),
      this.naming(),
    ];
    this.element.replaceChildren(
      h("p", { class: "selected-count", role: "status" }, `${count(this.count)} selected`),
      ...acts,
      ...(saved.length ? [this.choosing(saved)] : []),
      ...(problem ? [h("p", { class: "warning", role: "alert" }, problem)] : []));
  }

  naming() {
    const input = h("input", {
      type: "text", placeholder: "Name", "aria-label": "Name of the selection", maxlength: "100",
    });
    return h("form", {
      class: "inline",
      onsubmit: (event) => {
        event.preventDefault();
        if (input.value.trim()) this.save(input.value.trim());
      },
    }, input, h("button", { type: "submit" }, "Keep"));
  }

  choosing(saved) {
    const select = h("select", {
      "aria-label": "Kept selections",
      onchange: () => {
        const bits = saved[Number(select.value)]?.[1];
        if (bits) this.replace(decode(bits));
      },
    },
    h("option", { value: "" }, plural(saved.length, "kept selection")),
    saved.map(([name], place) => h("option", { value: String(place) }, name)));
    return h("span", { class: "inline" }, select, h("button", {
      type: "button", onclick: () => this.store([]),
    }, "Delete kept"));
  }
}

function encode(marks) {
  const bytes = new Uint8Array(Math.ceil(marks.length / 8));
  for (let row = 0; row < marks.length; row += 1) if (marks[row]) bytes[row >> 3] |= 1 << (row & 7);
  let text = "";
  for (let start = 0; start < bytes.length; start += 4096) {
    text += String.fromCharCode(...bytes.subarray(start, start + 4096));
  }
  return btoa(text);
}

function decode(text) {
  const bytes = atob(text);
  const rows = [];
  for (let place = 0; place < bytes.length; place += 1) {
    const bits = bytes.charCodeAt(place);
    for (let bit = 0; bit < 8; bit += 1) if (bits & (1 << bit)) rows.push(8 * place + bit);
  }
  return rows;
}
