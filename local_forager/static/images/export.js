// The dialog that exports the selected images, with the command that sends a label file to Forager.

import { count, h, plural, Problem, sendRows } from "../dom.js";

const FORMATS = {
  names: ["Object names", "one per line"],
  csv: ["CSV", "object, split, labels, ImageNet class"],
  labels: ["Label file", "for ingest_labels.py"],
};
const SUFFIXES = { names: "txt", csv: "csv", labels: "json" };
const MODES = ["POSITIVE", "NEGATIVE", "HARD_NEGATIVE", "UNSURE"];
const CATEGORY_LENGTH = 40; // characters of the category in the name of a file
const KEEP = 60_000; // milliseconds that the browser has to save the file
const dialog = document.getElementById("export");

dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

export function openExport(session) {
  const { info, selection } = session;
  const format = () => dialog.querySelector("[name=format]:checked").value;
  const known = info.categories.flatMap((one) => one.modes.map(({ mode }) => mode));
  const category = text("export-category", "Category", info.categories.map((one) => one.category), "");
  const mode = text("export-mode", "Mode", [...new Set([...MODES, ...known])], "POSITIVE");
  const label = h("div", { class: "export-label" }, category, mode);
  const command = h("code", {});
  let now = new Date(); // in the name of the file; each download has its own
  const file = () => fileName(info, format(), value(category), now);
  const after = h("div", { class: "export-command" },
    h("p", { class: "quiet" }, "This command sends the labels to Forager:"), h("pre", {}, command),
    h("button", {
      type: "button", onclick: () => navigator.clipboard.writeText(command.textContent),
    }, "Copy the command"));
  const status = h("p", { role: "status" });
  const value = (one) => one.querySelector("input").value.trim();
  const update = () => {
    const labels = format() === "labels";
    label.hidden = after.hidden = !labels;
    for (const one of label.querySelectorAll("input")) one.required = labels;
    command.textContent = `SERVER_URL=${location.origin} python ingest_labels.py ${info.name} ${file()} `
      + "--user you@example.org";
  };
  const form = h("form", {
    oninput: update,
    onsubmit: (event) => {
      event.preventDefault();
      const more = format() === "labels" ? { category: value(category), mode: value(mode) } : {};
      now = new Date();
      update();
      download(session, { format: format(), ...more }, file(), status);
    },
  },
  h("fieldset", { class: "export-formats" },
    h("legend", {}, `Export ${plural(selection.count, "selected image")} as`),
    Object.entries(FORMATS).map(([name, [title, about]]) => h("label", {},
      h("input", { type: "radio", name: "format", value: name, checked: name === "names" }),
      title, h("span", { class: "quiet" }, `: ${about}`)))),
  label,
  h("p", {}, h("button", { type: "submit", class: "primary" }, "Download")),
  status, after);
  dialog.replaceChildren(h("div", { class: "detail-head" },
    h("h2", { id: "export-title" }, "Export"),
    h("button", {
      type: "button", class: "round", "aria-label": "Close", onclick: () => dialog.close(),
    }, "×")), form);
  update();
  dialog.showModal();
}

// DATASET-CATEGORY-DATE-TIME: only letters, digits and . _ -, so that a shell reads it as one word.
function fileName({ name }, format, category, now) {
  const two = (number) => String(number).padStart(2, "0");
  const date = [now.getFullYear(), two(now.getMonth() + 1), two(now.getDate())].join("-");
  const time = [now.getHours(), now.getMinutes(), now.getSeconds()].map(two).join("");
  const what = format === "labels"
    ? [...category.replace(/[^\p{L}\p{N}._-]+/gu, "_")].slice(0, CATEGORY_LENGTH).join("") || "labels" : format;
  return `${name}-${what}-${date}-${time}.${SUFFIXES[format]}`;
}

function text(id, title, choices, value) {
  return h("p", {}, h("label", { for: id }, title),
    h("input", { type: "text", id, value, maxlength: "300", autocomplete: "off", list: `${id}-list` }),
    h("datalist", { id: `${id}-list` }, choices.map((one) => h("option", { value: one }))));
}

async function download(session, parameters, file, status) {
  const { info, selection } = session;
  status.textContent = "Exporting…";
  try {
    const blob = await sendRows(`/page/${info.name}/export`, parameters, selection.rows());
    const link = h("a", { href: URL.createObjectURL(blob), download: file });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), KEEP);
    status.textContent = `Exported ${count(selection.count)} images to ${link.download}.`;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    status.textContent = error.message;
  }
}
