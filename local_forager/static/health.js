// The health report: what may be wrong with the dataset. Each finding links to its images.

import { Distance } from "./distance.js";
import { count, embeddingOf, h, plural, Problem } from "./dom.js";
import { changed, current, go, noFilters, note, onLink } from "./state.js";

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
    const turn = (this.turn += 1);
    this.by = embeddingOf(this.session.info, state);
    this.near = state.distance;
    try {
      await this.refresh(turn, this.by);
    } catch (error) {
      if (!(error instanceof Problem) || this.near === null) throw error;
      this.near = null;
      note({ distance: null });
      await this.refresh(turn, this.by);
      this.distance.tell(error.message);
    }
    this.known = this.near;
    if (!late()) scrollTo(0, 0);
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

  // Shows another distance: the newest one, however fast it changes.
  async move(distance, done) {
    this.near = distance;
    if (done) note({ distance });
    if (this.moving) return;
    this.moving = true;
    let shown;
    try {
      do {
        shown = this.near;
        await this.refresh(this.turn, this.by);
        this.known = shown;
      } while (shown !== this.near);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.near = this.known;
      note({ distance: this.near });
      this.distance.tell(error.message);
    } finally {
      this.moving = false;
    }
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
  allPairs({ all_pairs: { state, progress, duration }, by, findings }, turn) {
    const found = findings.find(({ set }) => set === "near")?.state === "ready";
    if (state === "working") {
      return h("p", { role: "status" }, h("progress", { max: 1, value: progress, "aria-hidden": "true" }),
        ` Comparing all pairs: ${Math.round(100 * progress)}%`);
    }
    return state !== "waiting" || !found ? "" : h("p", {}, h("button", {
      type: "button", id: "all-pairs", onclick: () => this.refresh(turn, by, { exact: 1 }),
    }, `Compare all pairs for near duplicates: ${duration}`));
  }

  draw(report, turn) {
    const waiting = report.findings.some((finding) => finding.state === "waiting");
    const focused = this.element.contains(document.activeElement) ? document.activeElement.id : null;
    this.distance.show(report);
    this.head.replaceChildren(
      h("h2", {}, "Health"),
      h("fieldset", { class: "segments" },
        h("legend", { class: "hidden" }, "Compare by"),
        this.session.info.embeddings.map(({ by: name, about }) => h("label", { title: about },
          h("input", {
            type: "radio", name: "health-by", id: `health-${name}`, checked: name === report.by,
            onchange: () => go({ by: name === "clip" ? null : name, distance: null }, { replace: true }),
          }),
          h("span", {}, name)))));
    this.list.replaceChildren(
      h("ul", { class: "findings", role: "list" }, report.findings.map((one) => this.finding(one))),
      this.session.info.quality.available ? "" : h("p", { class: "quiet" }, this.session.info.quality.reason),
      waiting ? h("p", {}, h("button", {
        type: "button", onclick: () => this.refresh(turn, report.by, { start: 1 }),
      }, "Compare images")) : "",
      this.allPairs(report, turn));
    if (focused) document.getElementById(focused)?.focus();
  }

  finding(one) {
    const { field, least, most } = one;
    const sort = least === null ? field : `-${field}`;
    // A range, whose ends can be moved there, or a set.
    const link = field ? changed({
      ...noFilters(current()), view: null, image: null, [`min_${field}`]: least, [`max_${field}`]: most, sort,
    }) : changed({
      view: null, set: one.set, by: this.by === "clip" ? null : this.by, text: null, like: null, image: null,
      distance: BY_DISTANCE.includes(one.set) ? this.near : null,
    });
    return finding(one, link, (keepOne) => this.select(one.set, keepOne));
  }
}

function finding({ set, title, about, state, progress, images, groups }, link, select) {
  const percent = Math.round(100 * progress);
  const button = (kind, text, act, why) => h("button", {
    type: "button", id: `${kind}-${set}`, onclick: act, title: why,
  }, text);
  const result = {
    ready: () => (images ? h("a", { class: "button", onclick: onLink, href: link },
      groups ? `Show ${plural(images, "image")} in ${plural(groups, "group")}`
        : `Show ${plural(images, "image")}`) : h("span", { class: "fine" }, "None found")),
    working: () => h("span", {},
      h("progress", { max: 100, value: percent, "aria-label": title }), ` ${percent}%`),
    waiting: () => h("span", { class: "quiet" }, "Not compared yet"),
  }[state]();
  return h("li", { class: images ? "finding found" : "finding", "data-set": set },
    h("h3", {}, title),
    h("p", { class: "figure" }, state === "ready" ? count(images) : "…"),
    h("p", { class: "quiet" }, about),
    h("p", { class: "inline" }, result, state === "ready" && images ? [
      button("select", "Select", () => select(false)),
      groups ? button("keep", "Keep one", () => select(true),
        "Select all but the first image of each group") : null,
    ] : null));
}
