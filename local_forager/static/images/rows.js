// The images that pass the filters, and what is known about each. Kept until labels change.

import { askArray } from "../dom.js";
import { sizeText } from "../filters/ranges.js";
import { filtersIn, labelsIn, listsIn } from "../state.js";

const BATCH = 200; // images per request; the server accepts 500
const KEPT = 20000; // summaries in memory

export class Rows {
  constructor(session) {
    this.session = session;
    this.clear();
  }

  clear() {
    this.key = null;
    this.answer = null;
    this.summaries = new Map();
    this.asked = new Set();
  }

  // { rows: Int32Array, groups: the group of each row from 1, or null, distances: of each row to the
  // first of its group or to what the view is sorted by, or the size that it is sorted by, or null }
  async select(state) {
    const answer = await this.ask(state);
    return state.selected === "yes" ? this.onlySelected(answer) : answer;
  }

  // The selected images of an answer; the same object until answer or selection change.
  onlySelected(answer) {
    const { selection } = this.session;
    if (this.part?.answer !== answer || this.part.version !== selection.version) {
      const places = [...answer.rows.keys()].filter((place) => selection.has(answer.rows[place]));
      const take = (array) => array && array.constructor.from(places, (place) => array[place]);
      this.part = {
        answer,
        version: selection.version,
        rows: take(answer.rows),
        groups: take(answer.groups),
        distances: take(answer.distances),
      };
    }
    return this.part;
  }

  // The filters and the order of a view, as the page's API takes them.
  parameters(state) {
    const parameters = Object.fromEntries(filtersIn(state).map((field) => [field, state[field]]));
    for (const field of listsIn(state)) parameters[field] = labelsIn(state, field);
    if (state.set || state.like !== null || state.sort) parameters.by = state.by;
    return parameters;
  }

  async ask(state) {
    const parameters = this.parameters(state);
    const key = JSON.stringify(parameters);
    if (key !== this.key) {
      const { name, ended } = this.session;
      const compares = state.set || state.text || state.like !== null
        || ["outliers", "typical"].includes(state.sort) || sizeText(this.session.info, state);
      const [coded, distances] = await Promise.all([
        askArray(Int32Array, `/page/${name}/rows`, parameters, ended.signal),
        compares ? askArray(Float32Array, `/page/${name}/distances`, parameters, ended.signal) : [],
      ]);
      this.answer = { ...decode(coded), distances: distances.length ? distances : null };
      this.key = key;
    }
    return this.answer;
  }

  known(row) {
    return this.summaries.get(row);
  }

  // Requests the rows that are not known yet; calls told after each answer.
  async learn(rows, told) {
    const wanted = [...new Set(rows)].filter((row) => !this.summaries.has(row) && !this.asked.has(row));
    for (let start = 0; start < wanted.length; start += BATCH) {
      const batch = wanted.slice(start, start + BATCH);
      const asked = this.asked;
      for (const row of batch) asked.add(row);
      try {
        const { images } = await this.session.ask("images", { rows: batch.join(",") });
        if (asked !== this.asked) return; // labels changed meanwhile
        if (this.summaries.size > KEPT) this.summaries.clear();
        for (const image of images) this.summaries.set(image.row, image);
        told();
      } catch (error) {
        if (error.name !== "AbortError") continue;
      } finally {
        for (const row of batch) asked.delete(row);
      }
    }
  }

  thumbnail(row) {
    const { name, info } = this.session;
    return `/page/${name}/thumbnail/${row}?v=${encodeURIComponent(info.index_id)}`;
  }

  original(row) {
    const { name, info } = this.session;
    return `/page/${name}/original/${row}?v=${encodeURIComponent(info.index_id)}`;
  }
}

function decode(coded) {
  const groups = coded.some((row) => row < 0) ? new Int32Array(coded.length) : null;
  const rows = new Int32Array(coded.length);
  let group = 0;
  for (let place = 0; place < coded.length; place += 1) {
    const row = coded[place];
    if (row < 0) group += 1;
    rows[place] = row < 0 ? -1 - row : row;
    if (groups) groups[place] = group;
  }
  return { rows, groups };
}
