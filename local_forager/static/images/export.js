// The dialog that exports the selected images, with the command that sends a label file to Forager.

import { form } from "../base/controls.js";
import { field, makeDialog, openDialog, radioList } from "../base/dialogs.js";
import { button, h, plural } from "../base/dom.js";
import { post, problemOf } from "../base/requests.js";

const FORMATS = {
  names: ["Object names", "one per line"],
  csv: ["CSV", "object, split, labels, ImageNet class"],
  labels: ["Label file", "for ingest_labels.py"],
};
const SUFFIXES = { names: "txt", csv: "csv", labels: "json" };
const MODES = ["POSITIVE", "NEGATIVE", "HARD_NEGATIVE", "UNSURE"];
const CATEGORY_LENGTH = 40; // characters of the category in the name of a file
const KEEP = 60_000; // milliseconds that the browser has to save the file
const dialog = makeDialog("export");

export function openExport(session) {
  const { info, selection } = session;
  const format = () => dialog.querySelector("[name=format]:checked").value;
  const known = info.categories.flatMap((one) => one.modes.map(({ mode }) => mode));
  const [category, categories] = text("category", info.categories.map((one) => one.category), "");
  const [mode, modes] = text("mode", [...new Set([...MODES, ...known])], "POSITIVE");
  const label = h("div", {}, field("Category", category, categories), field("Mode", mode, modes));
  const command = h("code", {});
  let now = new Date(); // in the name of the file; each download has its own
  const file = () => fileName(info, format(), category.value.trim(), now);
  const after = h("div", {},
    h("p", { class: "quiet" }, "This command sends the labels to Forager:"), h("pre", {}, command),
    button("Copy the command", () => navigator.clipboard.writeText(command.textContent)));
  const status = h("p", { role: "status" });
  const update = () => {
    const labels = format() === "labels";
    label.hidden = after.hidden = !labels;
    category.required = mode.required = labels;
    command.textContent = `SERVER_URL=${location.origin} python ingest_labels.py ${info.name} ${file()} `
      + "--user you@example.org";
  };
  const act = () => {
    const more = format() === "labels"
      ? { category: category.value.trim(), mode: mode.value.trim() } : {};
    now = new Date();
    update();
    download(session, { format: format(), ...more }, file(), status);
  };
  openDialog(dialog, "Export", form(act, { oninput: update },
    radioList("format", `Export ${plural(selection.count, "selected image")} as`, FORMATS), label,
    h("p", {}, h("button", { type: "submit", class: "primary" }, "Download")),
    status, after));
  update();
}

// DATASET-CATEGORY-DATE-TIME: only letters, digits and . _ -, so that a shell reads it as one word.
function fileName({ name }, format, category, now) {
  const time = now.toLocaleString("sv").replace(" ", "-").replaceAll(":", ""); // Sweden's dates are ISO 8601
  const what = format === "labels"
    ? [...category.replace(/[^\p{L}\p{N}._-]+/gu, "_")].slice(0, CATEGORY_LENGTH).join("") || "labels" : format;
  return `${name}-${what}-${time}.${SUFFIXES[format]}`;
}

// A text to type, and the texts that the browser offers.
function text(name, choices, value) {
  const id = `export-${name}`;
  return [
    h("input", { type: "text", id, value, maxlength: "300", autocomplete: "off", list: `${id}-list` }),
    h("datalist", { id: `${id}-list` }, choices.map((one) => h("option", { value: one }))),
  ];
}

async function download({ info, selection }, parameters, file, status) {
  status.textContent = "Exporting…";
  try {
    const answer = await post(`/page/${info.name}/export`, parameters, selection.rows());
    const link = h("a", { href: URL.createObjectURL(await answer.blob()), download: file });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), KEEP);
    status.textContent = `Exported ${plural(selection.count, "image")} to ${file}.`;
  } catch (error) {
    status.textContent = problemOf(error).message;
  }
}
