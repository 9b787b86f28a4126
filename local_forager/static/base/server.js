// While the server does not answer, the page says so at its top, and goes on when it is back.

import { noAnswer, pause } from "./requests.js";

const POLL = 1500; // milliseconds between looks whether the server is back
const note = document.getElementById("offline");
let waiting = false;

async function answers() {
  try {
    return (await fetch("/static/icon.svg", { method: "HEAD", cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

export function watchServer(resume) {
  noAnswer.addEventListener("problem", async () => {
    if (waiting) return;
    waiting = true;
    while (!(await answers())) { // a request that broke off alone is only repeated
      if (!note.matches(":popover-open")) note.showPopover(); // in the top layer, above dialogs
      await pause(POLL);
    }
    await pause(POLL); // requests that break off again and again are not repeated at once
    waiting = false;
    if (note.matches(":popover-open")) note.hidePopover();
    await resume();
  });
}
