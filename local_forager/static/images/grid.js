// The grid of thumbnails. Only the tiles on the screen exist, whatever the number of images.

import { segments } from "../base/controls.js";
import {
  basename, button, dot, fill, h, kept, keep, labelText, own, splitName,
} from "../base/dom.js";
import { MISSING } from "../base/missing.js";
import { rove } from "../base/rove.js";
import { changed, onLink } from "../base/state.js";
import { summary } from "../filters/filters.js";
import { sizeText } from "../filters/ranges.js";
import { boxSwitch, tileBoxes } from "./boxes.js";
import { openChoose } from "./choose.js";

const SIZES = { small: 104, medium: 160, large: 240 }; // minimum width of a tile in pixels
const GAP = 6; // pixels
const OVERSCAN = 400; // pixels above and below the screen that also have tiles
const MAX_HEIGHT = 8_000_000; // pixels; browsers allow about 16 to 33 million
const FAST = 3; // pixels per millisecond; nothing is requested while scrolling faster
const SETTLE = 90; // milliseconds after the last scroll event until everything is requested
const MARKS = 4; // dots per image, one per label
const EDGE = 90; // pixels below the top of the window that the header covers
const SIZE = "forager-thumbnail-size"; // where the browser keeps the chosen size

export class Grid {
  constructor(session) {
    this.session = session;
    this.head = h("div", { class: "head", role: "toolbar", "aria-label": "This view" });
    this.list = h("ul", { class: "grid", role: "list", "aria-label": "Images" });
    this.none = h("p", { class: "note", hidden: true });
    this.element = h("div", {}, this.head, this.none, this.list);
    this.tiles = [];
    this.size = own(SIZES, kept(SIZE)) ? kept(SIZE) : "medium";
    this.rows = new Int32Array(); // with groups and distances: see Rows.select
    this.anchor = null; // the place where a range begins
    this.focus = 0;
    this.frame = 0;
    this.lastScroll = { at: 0, y: 0, speed: 0 };
    this.closed = new AbortController();
    this.list.addEventListener("keydown", (event) => this.onKey(event));
    addEventListener("scroll", () => this.request(), { passive: true, signal: this.closed.signal });
    this.observer = new ResizeObserver(() => this.layout());
    this.observer.observe(this.element);
  }

  close() {
    this.closed.abort();
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.settling);
  }

  async show(state, { scroll, late }) {
    const { rows, groups, distances } = await this.session.rows.select(state);
    if (late()) return;
    const before = this.rows;
    Object.assign(this, { rows, groups, distances });
    this.shown = sizeText(this.session.info, state) ?? ((distance) => distance.toFixed(3));
    const onlySelected = state.selected === "yes";
    fill(this.head, summary(this.session, state, rows.length),
      button("Select all", () => this.session.selection.set(this.rows),
        { id: "select-all", disabled: !rows.length }),
      button("Choose…", () => openChoose(this.session, state), {
        id: "choose-some", disabled: !rows.length || onlySelected,
        title: onlySelected ? "These images are selected already" : null,
      }),
      this.session.info.boxed > 0 && boxSwitch("Boxes"),
      segments("size", "Size of the thumbnails", Object.keys(SIZES).map((name) => [name]), this.size,
        (name) => this.resize(name)));
    rove(this.head);
    this.none.hidden = rows.length > 0;
    this.none.textContent = this.session.info.rows
      ? "No image fits these filters." : "This dataset has no images.";
    if (before !== rows) {
      this.anchor = null;
      this.focus = before.length ? 0 : Math.max(0, rows.indexOf(this.session.lastRow ?? -1));
      for (const tile of this.tiles) tile.row = -1;
    }
    this.layout();
    if (scroll !== null) scrollTo(0, scroll);
    else if (before !== rows && before.length) scrollTo(0, 0);
    else if (this.focus) this.reveal(this.focus); // back from another view
    this.update(true);
  }

  layout() {
    const width = this.list.clientWidth;
    if (!width) return;
    const least = Math.min(SIZES[this.size], (width - 2 * GAP) / 3);
    this.columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
    this.tile = (width - GAP * (this.columns - 1)) / this.columns;
    this.step = this.tile + GAP;
    this.total = Math.ceil(this.rows.length / this.columns) * this.step;
    this.height = Math.min(this.total, MAX_HEIGHT);
    this.list.style.height = `${this.height}px`;
    this.list.style.setProperty("--tile", this.tile);
    for (const tile of this.tiles) tile.place = -1;
    this.request();
  }

  request() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.update(false);
    });
  }

  // Pixels of the list above the screen, and how far its tiles are shifted where the list is
  // higher than MAX_HEIGHT: there, `scale` pixels of tiles pass with each pixel of scrolling.
  position() {
    const above = -this.list.getBoundingClientRect().top;
    const scale = this.total > this.height
      ? (this.total - innerHeight) / (this.height - innerHeight) : 1;
    return { above, scale, offset: Math.max(0, above) * (scale - 1) };
  }

  update(settled) {
    if (!this.columns) return;
    const { above, offset } = this.position();
    this.measureSpeed(above);
    const fetchAll = settled || this.lastScroll.speed < FAST;
    const top = above + offset;
    const first = Math.max(0, Math.floor((top - OVERSCAN) / this.step) * this.columns);
    const last = Math.min(this.rows.length,
      Math.ceil((top + innerHeight + OVERSCAN) / this.step) * this.columns);
    // As many tiles as any scroll position needs: with more later, the focused tile would become
    // another image's.
    const lines = Math.ceil((innerHeight + 2 * OVERSCAN) / this.step) + 1;
    this.fit(Math.min(this.rows.length, lines * this.columns));
    const pool = this.tiles.length;
    for (let place = first; place < last; place += 1) {
      this.put(this.tiles[place % pool], place, offset, fetchAll);
    }
    const stop = this.tabStop(first, last, top);
    for (const tile of this.tiles) {
      if (tile.place < first || tile.place >= last) this.hide(tile);
      const index = tile.place === stop ? 0 : -1;
      if (tile.link.tabIndex !== index) tile.link.tabIndex = index;
    }
    clearTimeout(this.settling);
    if (settled) this.learn(first, last);
    else this.settling = setTimeout(() => this.update(true), SETTLE);
  }

  // The place that Tab leads to: the focus or, where that has no tile, the first on the screen.
  tabStop(first, last, top) {
    if (this.focus >= first && this.focus < last) return this.focus;
    return Math.min(last - 1, Math.max(first, Math.ceil(top / this.step) * this.columns));
  }

  measureSpeed(y) {
    const at = performance.now();
    const passed = at - this.lastScroll.at;
    if (passed < 1) return;
    this.lastScroll = { at, y, speed: Math.abs(y - this.lastScroll.y) / passed };
  }

  fit(needed) {
    while (this.tiles.length < needed) {
      const tile = makeTile();
      tile.link.addEventListener("click", (event) => this.onClick(event, tile));
      tile.check.addEventListener("click", (event) => this.pick(tile.place, event.shiftKey));
      tile.badge.addEventListener("click", () => this.selectGroup(tile.place));
      tile.link.addEventListener("focus", () => {
        this.focus = tile.place;
        this.session.lastRow = tile.row;
      });
      this.tiles.push(tile);
      this.list.append(tile.item);
      for (const other of this.tiles) other.place = -1; // place modulo pool has changed
    }
  }

  hide(tile) {
    if (tile.item.hidden) return;
    tile.item.hidden = true;
    tile.place = -1;
    tile.row = -1;
    tile.image.removeAttribute("src");
  }

  put(tile, place, offset, fetchNow) {
    const row = this.rows[place];
    if (tile.place !== place || offset || tile.offset) {
      const x = (place % this.columns) * this.step;
      const y = Math.floor(place / this.columns) * this.step - offset;
      tile.item.style.transform = `translate(${x}px, ${y}px)`;
      tile.item.style.width = tile.item.style.height = `${this.tile}px`;
      tile.place = place;
      tile.offset = offset;
      tile.item.ariaPosInSet = String(place + 1);
      tile.item.ariaSetSize = String(this.rows.length);
      this.mark(tile, place);
    }
    tile.item.hidden = false;
    if (tile.row !== row) {
      tile.row = row;
      this.markSelected(tile);
      tile.loaded = false;
      tile.image.removeAttribute("src");
      describe(tile, this.session.rows.known(row));
    }
    if (fetchNow && !tile.loaded) {
      tile.loaded = true;
      tile.link.href = changed({ image: row });
      if (!this.session.rows.known(row)?.failed) tile.image.src = this.session.rows.address("thumbnail", row);
    }
  }

  // Shift selects a range from the image that was selected last, Ctrl or Cmd a single image.
  onClick(event, tile) {
    if (!event.shiftKey && !event.ctrlKey && !event.metaKey) {
      onLink(event);
      return;
    }
    event.preventDefault();
    this.pick(tile.place, event.shiftKey);
  }

  // Selects the image at a place or takes it away; with range, selects all from the last one to it.
  pick(place, range) {
    const { selection } = this.session;
    const first = range ? this.anchor ?? place : place;
    const on = first !== place || range || !selection.has(this.rows[place]);
    if (!range) this.anchor = place;
    selection.set(this.rows.subarray(Math.min(first, place), Math.max(first, place) + 1), on);
    this.showSelection();
    if (this.tiles.some((tile) => tile.place === place)) this.focusOn(place);
  }

  selectGroup(place) {
    const group = this.groups[place];
    this.session.selection.set(this.rows.filter((_, other) => this.groups[other] === group));
  }

  showSelection() {
    for (const tile of this.tiles) this.markSelected(tile);
  }

  markSelected(tile) {
    const on = this.session.selection.has(tile.row);
    tile.item.classList.toggle("selected", on);
    tile.check.checked = on;
  }

  // Marks every other group of duplicates, and numbers the first image of each.
  mark(tile, place) {
    const group = this.groups?.[place] ?? 0;
    tile.item.dataset.group = group ? String(group % 2) : "";
    const starts = group && this.groups[place - 1] !== group;
    tile.badge.textContent = starts ? `Group ${group}` : "";
    tile.badge.hidden = !starts;
    // Of duplicates, the split too: a leak is a group with images of both.
    const { rows_train: train } = this.session.info;
    const texts = this.groups ? [this.rows[place] < train ? "train" : "val"] : [];
    if (this.distances && !starts) texts.push(this.shown(this.distances[place]));
    tile.far.hidden = !texts.length;
    tile.far.textContent = texts.join(" · ");
  }

  // Focuses the tile of a row, scrolled into view; nothing if the view does not have it.
  focusRow(row) {
    const place = this.rows.indexOf(row);
    if (place >= 0) this.focusOn(place);
  }

  learn(first, last) {
    const tell = () => {
      for (const tile of this.tiles) {
        if (!tile.item.hidden) describe(tile, this.session.rows.known(tile.row));
      }
    };
    this.session.rows.learn(this.rows.subarray(first, last), tell);
    tell();
  }

  resize(name) {
    this.size = name;
    keep(SIZE, name);
    this.layout();
    this.update(true);
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(innerHeight / this.step)) * this.columns;
    const moves = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns,
      PageDown: page, PageUp: -page, Home: -this.rows.length, End: this.rows.length,
    };
    const control = event.ctrlKey || event.metaKey;
    if (event.key === "a" && control) {
      event.preventDefault();
      this.session.selection.set(this.rows);
    } else if (event.key === " " && !event.target.closest("input, button")) {
      event.preventDefault();
      this.pick(this.focus, event.shiftKey);
    }
    if (own(moves, event.key) === undefined || event.altKey || control) return;
    event.preventDefault();
    const place = Math.max(0, Math.min(this.rows.length - 1, this.focus + moves[event.key]));
    if (event.shiftKey) {
      this.anchor ??= this.focus;
      this.focusOn(place);
      this.pick(place, true);
    } else this.focusOn(place);
  }

  // Scrolls as far as needed to have a place on the screen.
  reveal(place) {
    const y = Math.floor(place / this.columns) * this.step;
    const { above, scale, offset } = this.position();
    const from = y - (above + offset);
    if (from >= EDGE && from + this.step <= innerHeight) return;
    const target = from < EDGE ? y - EDGE : y + this.step + GAP - innerHeight;
    scrollTo(0, scrollY - above + target / scale);
  }

  focusImages() {
    if (!this.rows.length) return false;
    this.focusOn(this.focus);
    return true;
  }

  focusOn(place) {
    this.focus = place;
    this.reveal(place);
    this.update(true);
    const tile = this.tiles.find((other) => other.place === place && !other.item.hidden);
    tile?.link.focus({ preventScroll: true });
  }
}

function makeTile() {
  const image = h("img", { alt: "", decoding: "async", draggable: "false" });
  const badge = button("", null, { class: "badge", hidden: true, tabIndex: -1, title: "Select this group" });
  const check = h("input", {
    type: "checkbox", class: "check", tabIndex: -1, "aria-label": "Select this image",
  });
  const dots = h("span", { class: "dots" });
  const text = h("span", { class: "tile-text" });
  const far = h("span", { class: "badge far", hidden: true, title: "What the images are sorted by" });
  const link = h("a", { class: "tile", tabIndex: -1 }, image, text, far, dots);
  const item = h("li", { class: "cell" }, link, badge, check);
  image.addEventListener("load", () => link.classList.add("here"));
  return { item, link, image, badge, check, far, dots, text, place: -1, row: -1, offset: 0 };
}

function describe(tile, known) {
  if (tile.told === known && tile.toldRow === tile.row) return;
  const other = tile.toldRow !== tile.row;
  tile.told = known;
  tile.toldRow = tile.row;
  if (other) tile.link.classList.remove("here");
  const labels = known?.labels ?? [];
  tile.dots.replaceChildren(...labels.slice(0, MARKS).map(({ mode }) => dot(mode)));
  tile.boxes?.remove();
  tile.boxes = known?.boxes.length && known.width
    ? tileBoxes(known.boxes, known.width, known.height) : null;
  if (tile.boxes) tile.image.after(tile.boxes);
  if (other || known?.failed) {
    tile.text.textContent = known?.failed ? `failed: ${basename(known.name)}` : "";
  }
  const text = known ? basename(known.name) : `Image ${tile.row}`;
  const about = [text, known?.split === "val" ? splitName("val") : "", known?.failed ? "failed" : "",
    ...labels.map(labelText), ...new Set(known?.boxes.map((box) => `box ${labelText(box)}`)),
  ].filter(Boolean).join(", ");
  tile.image.alt = about;
  tile.link.title = about;
  if (known?.failed) tile.image.src = MISSING;
}
