// The list of datasets.

import { button, count, h, plural } from "../base/dom.js";
import { askJson, pause } from "../base/requests.js";
import { current, onLink } from "../base/state.js";
import { openDeletion } from "./deletion.js";

const POLL = 4000; // milliseconds between checks for new datasets
const COVERS = 4;

export async function home(main) {
  main.replaceChildren();
  let shown = null;
  while (current().name === null) {
    if (!document.hidden || shown === null) {
      const list = await askJson("/page/datasets").catch((error) => {
        if (shown === null) throw error;
        return null;
      });
      const text = JSON.stringify(list);
      if (current().name !== null) return;
      if (list && text !== shown) {
        shown = text;
        main.replaceChildren(listing(list));
        main.ariaBusy = "false";
      }
    }
    await pause(POLL);
  }
}

function listing(list) {
  const { datasets } = list;
  return h("div", { class: "home" },
    h("h1", {}, "Datasets"),
    h("p", { class: "quiet" }, datasets.length ? plural(datasets.length, "dataset") : "None yet",
      ` · local Forager, generation ${list.generation} · index bucket `, h("code", {}, list.bucket)),
    datasets.length ? h("ul", { class: "cards", role: "list" }, datasets.map(card)) : empty(),
  );
}

function card(dataset) {
  const total = dataset.num_train + dataset.num_val;
  const body = [
    h("span", { class: "covers" }, dataset.opens && total ? covers(dataset, total) : null),
    h("span", { class: "card-name" }, h("bdi", {}, dataset.name)),
    h("span", { class: "quiet" }, total
      ? `${count(dataset.num_train)} train · ${count(dataset.num_val)} validation`
      : "no images"),
    dataset.opens ? null : h("span", { class: "quiet" }, "No Forager can open a dataset of this name."),
  ];
  const remove = button("Delete…", () => openDeletion(dataset.name, () => item.remove()),
    { class: "delete", "aria-label": `Delete ${dataset.name}…` });
  const item = h("li", {}, dataset.opens
    ? h("a", { class: "card", href: `/${dataset.name}`, onclick: onLink }, body)
    : h("span", { class: "card closed" }, body), remove);
  return item;
}

function covers(dataset, total) {
  return Array.from({ length: Math.min(COVERS, total) }, (_, place) => h("img", {
    src: `/page/${dataset.name}/cover/${place}`, alt: "", decoding: "async", loading: "lazy",
  }));
}

function empty() {
  return h("div", { class: "note" },
    h("p", {}, "Ingest images from a bucket, and the dataset appears here by itself:"),
    h("pre", {}, h("code", {},
      `SERVER_URL=${location.origin} python ingest.py NAME gs://BUCKET/train gs://BUCKET/val`)),
  );
}
