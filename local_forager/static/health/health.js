// The health report: what may be wrong with the dataset. Each finding links to its images.

import { compareBy, link } from "../base/controls.js";
import { button, count, embeddingOf, fill, h, percent, plural } from "../base/dom.js";
import { problemOf } from "../base/requests.js";
import { current, noFilters, note } from "../base/state.js";
import { Distance } from "./distance.js";

const POLL = 700; // milliseconds while a check is running
const BY_DISTANCE = ["near", "leak"]; // the findings that the distance changes

export class Health {
  constructor(session) {
    this.session = session;
    this.head = h("div", { class: "head" });
    this.distance = new Distance(session, (distance, done) => this.move(distance, done));
    this.list = h("div", {});
    this.element = h("div", { class: "health" }, this.head, this.distance.element, this.list);
    this.near = null; // the distance that is shown, as in the address; null for the default
    this.known = null; // the last one for which there was an answer
    this.turn = 0;
  }

  close() {
    this.turn += 1;
    clearTimeout(this.timer);
  }

  async show(state, { late }) {
    this.turn += 1;
    this.by = embeddingOf(this.session.info, state);
    this.near = state.distance;
    this.known = null;
    await this.latest();
    if (!late()) scrollTo(0, 0);
  }

  // Shows the distance `near`, the newest one however fast it changes; where the server refuses it,
  // the last one that it did not refuse.
  async latest() {
    const { turn, by } = this;
    this.moving = true;
    try {
      let asked;
      do {
        asked = this.near;
        await this.refresh(turn, by);
        this.known = asked;
      } while (asked !== this.near);
    } catch (error) {
      const { message } = problemOf(error);
      if (turn !== this.turn || this.near === this.known) throw error;
      this.near = this.known;
      note({ distance: this.near });
      await this.refresh(turn, by);
      this.distance.tell(message);
    } finally {
      this.moving = false;
    }
  }

  async refresh(turn, by, starting = {}) {
    const report = await this.session.ask("health", { by, distance: this.near, ...starting });
    if (turn !== this.turn) return;
    this.draw(report, turn);
    clearTimeout(this.timer);
    if ([report.all_pairs, ...report.findings].some(({ state }) => state === "working")) {
      this.timer = setTimeout(() => this.refresh(turn, by).catch(() => {}), POLL);
    }
  }

  async move(distance, done) {
    this.near = distance;
    if (done) note({ distance });
    if (!this.moving) await this.latest().catch(problemOf);
  }

  // Selects the images of a set, or with keepOne all but the first of each group.
  async select(set, keepOne) {
    const distance = BY_DISTANCE.includes(set) ? this.near : null;
    const { rows, groups } = await this.session.rows.ask({ ...noFilters(current()), set, by: this.by, distance });
    const { selection } = this.session;
    const isKept = (_, place) => keepOne && groups[place] !== groups[place - 1];
    selection.set(rows.filter(isKept), false);
    selection.set(rows.filter((row, place) => !isKept(row, place)));
  }

  // Near duplicates of a large dataset are searched for among roughly similar images first.
  allPairs({ all_pairs: { state, progress, duration }, findings }, turn) {
    if (state === "working") {
      return h("p", { role: "status" }, h("progress", { max: 1, value: progress, "aria-hidden": "true" }),
        ` Comparing all pairs: ${percent(progress)}`);
    }
    const found = findings.some((one) => one.set === "near" && one.state === "ready");
    return state === "waiting" && found && h("p", {}, button(
      `Compare all pairs for near duplicates: ${duration}`,
      () => this.refresh(turn, this.by, { exact: 1 }), { id: "all-pairs" }));
  }

  draw(report, turn) {
    const { embeddings, quality } = this.session.info;
    const waiting = report.findings.some((finding) => finding.state === "waiting");
    this.distance.show(report);
    fill(this.head, h("h2", {}, "Health"),
      compareBy("health", embeddings, report.by, { distance: null }));
    fill(this.list,
      h("ul", { class: "findings", role: "list" }, report.findings.map((one) => this.finding(one))),
      !quality.available && h("p", { class: "quiet" }, quality.reason),
      waiting && h("p", {}, button("Compare images",
        () => this.refresh(turn, report.by, { start: 1 }), { id: "compare-images" })),
      this.allPairs(report, turn));
  }

  // What the finding's images have: a range, whose ends can be moved there, or a set.
  changes({ set, field, least, most }) {
    const all = { ...noFilters(current()), view: null, image: null };
    return field ? {
      ...all, [`min_${field}`]: least, [`max_${field}`]: most, sort: least === null ? field : `-${field}`,
    } : {
      view: null, image: null, text: null, like: null, set, by: this.by === "clip" ? null : this.by,
      distance: BY_DISTANCE.includes(set) ? this.near : null,
    };
  }

  finding(one) {
    const { set, title, about, state, progress, images, groups } = one;
    const some = state === "ready" && images > 0;
    const text = groups ? `Show ${plural(images, "image")} in ${plural(groups, "group")}`
      : `Show ${plural(images, "image")}`;
    const result = {
      ready: () => (images ? link(this.changes(one), { id: `show-${set}`, class: "button" }, text)
        : h("span", { class: "fine" }, "None found")),
      working: () => h("span", { class: "quiet" }, progress > 0 ? [
        h("progress", { max: 1, value: progress, "aria-label": title }), ` ${percent(progress)}`,
      ] : "Comparing images…"),
      waiting: () => h("span", { class: "quiet" }, "Not compared yet"),
    }[state]();
    return h("li", { class: images ? "finding found" : "finding", "data-set": set },
      h("h3", {}, title),
      h("p", { class: "figure" }, state === "ready" ? count(images) : "…"),
      h("p", { class: "quiet" }, about),
      h("p", { class: "inline" }, result,
        some && button("Select", () => this.select(set, false), { id: `select-${set}` }),
        some && groups > 0 && button("Keep one", () => this.select(set, true),
          { id: `keep-${set}`, title: "Select all but the first image of each group" })));
  }
}
