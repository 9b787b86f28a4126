// The health report: what may be wrong with the dataset. Each finding links to its images.

import { count, embeddingOf, h, plural } from "./dom.js";
import { changed, current, go, noFilters, onLink } from "./state.js";

const POLL = 700; // milliseconds while a check is running

export class Health {
  constructor(session) {
    this.session = session;
    this.element = h("div", { class: "health" });
    this.turn = 0;
  }

  close() {
    this.turn += 1;
    clearTimeout(this.timer);
  }

  async show(state, { late }) {
    const turn = (this.turn += 1);
    const by = embeddingOf(this.session.info, state);
    await this.refresh(turn, by);
    if (!late()) scrollTo(0, 0);
  }

  async refresh(turn, by, starting = {}) {
    const report = await this.session.ask("health", { by, ...starting });
    if (turn !== this.turn) return;
    this.draw(report, turn);
    clearTimeout(this.timer);
    if ([report.all_pairs, ...report.findings].some(({ state }) => state === "working")) {
      this.timer = setTimeout(() => this.refresh(turn, by).catch(() => {}), POLL);
    }
  }

  async select(set, by) {
    const { rows } = await this.session.rows.ask({ ...noFilters(current()), set, by });
    this.session.selection.set(rows);
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
    this.element.replaceChildren(
      h("div", { class: "head" },
        h("h2", {}, "Health"),
        h("fieldset", { class: "segments" },
          h("legend", { class: "hidden" }, "Compare by"),
          this.session.info.embeddings.map(({ by: name, about }) => h("label", { title: about },
            h("input", {
              type: "radio", name: "health-by", id: `health-${name}`, checked: name === report.by,
              onchange: () => go({ by: name === "clip" ? null : name }, { replace: true }),
            }),
            h("span", {}, name))))),
      h("ul", { class: "findings", role: "list" }, report.findings.map((one) =>
        finding(one, report.by, () => this.select(one.set, report.by)))),
      this.session.info.quality.available ? "" : h("p", { class: "quiet" }, this.session.info.quality.reason),
      waiting ? h("p", {}, h("button", {
        type: "button", onclick: () => this.refresh(turn, report.by, { start: 1 }),
      }, "Compare images")) : "",
      this.allPairs(report, turn));
    if (focused) document.getElementById(focused)?.focus();
  }
}

// The view of a finding: images within a range, whose ends can be moved there, or those of a set.
function viewOf({ set, field, least, most }, by) {
  if (!field) {
    return changed({ view: null, set, by: by === "clip" ? null : by, text: null, like: null, image: null });
  }
  const sort = least === null ? field : `-${field}`;
  return changed({ ...noFilters(current()), view: null, image: null, [`min_${field}`]: least, [`max_${field}`]: most, sort });
}

function finding(one, by, select) {
  const { set, title, about, state, progress, images, groups } = one;
  const percent = Math.round(100 * progress);
  const result = {
    ready: () => (images ? h("a", {
      class: "button", onclick: onLink, href: viewOf(one, by),
    }, groups ? `Show ${plural(images, "image")} in ${plural(groups, "group")}`
      : `Show ${plural(images, "image")}`) : h("span", { class: "fine" }, "None found")),
    working: () => h("span", {},
      h("progress", { max: 100, value: percent, "aria-label": title }), ` ${percent}%`),
    waiting: () => h("span", { class: "quiet" }, "Not compared yet"),
  }[state]();
  return h("li", { class: images ? "finding found" : "finding", "data-set": set },
    h("h3", {}, title),
    h("p", { class: "figure" }, state === "ready" ? count(images) : "…"),
    h("p", { class: "quiet" }, about),
    h("p", { class: "inline" }, result, state === "ready" && images
      ? h("button", { type: "button", id: `select-${set}`, onclick: select }, "Select") : null));
}
