// The images that pass the filters, and what is known about each. Kept until labels change.

import { problemOf } from "../base/requests.js";
import { filtersIn, labelsIn, listsIn } from "../base/state.js";
import { sizeText } from "../filters/ranges.js";

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
      const { rows, groups, distances } = answer;
      this.part = {
        answer, version: selection.version, rows: take(rows), groups: take(groups), distances: take(distances),
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
      const { session } = this;
      const compares = state.set || state.text || state.like !== null
        || ["outliers", "typical"].includes(state.sort) || sizeText(session.info, state);
      const [coded, distances] = await Promise.all([
        session.askArray(Int32Array, "rows", parameters),
        compares ? session.askArray(Float32Array, "distances", parameters) : [],
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
        if (error.name === "AbortError") return;
        problemOf(error); // the next ones may come
      } finally {
        for (const row of batch) asked.delete(row);
      }
    }
  }

  address(kind, row) {
    const { name, info } = this.session;
    return `/page/${name}/${kind}/${row}?v=${encodeURIComponent(info.index_id)}`;
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
