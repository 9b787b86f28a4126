// Groups of controls that are one stop of the Tab key; the arrow keys move within a group.

import { own } from "./dom.js";

const CONTROLS = "a, button, input[type=checkbox], input[type=radio]";
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

// Makes the controls within an element one group; called again after its content has changed. Up and
// down move between the controls that match `lines`, if it is given, left and right between all.
export function rove(element, lines = CONTROLS) {
  const controls = [...element.querySelectorAll(CONTROLS)];
  const current = controls.find((one) => one.tabIndex === 0 && one === document.activeElement)
    ?? controls.find((one) => one.ariaCurrent && one.matches(lines)) ?? controls.find((one) => !one.disabled);
  for (const one of controls) one.tabIndex = one === current ? 0 : -1;
  if (element.dataset.roves) return;
  element.dataset.roves = "yes";
  element.addEventListener("focusin", ({ target }) => {
    if (!target.matches(CONTROLS)) return;
    for (const one of element.querySelectorAll(CONTROLS)) one.tabIndex = one === target ? 0 : -1;
  });
  element.addEventListener("keydown", (event) => {
    const step = own(STEPS, event.key);
    if (!step || !event.target.matches(CONTROLS) || event.altKey || event.ctrlKey || event.metaKey) return;
    const vertical = ["ArrowUp", "ArrowDown"].includes(event.key);
    const choices = [...element.querySelectorAll(CONTROLS)].filter((one) =>
      one === event.target || (!one.disabled && one.checkVisibility() && (!vertical || one.matches(lines))));
    const place = choices.indexOf(event.target) + step;
    choices[Math.max(0, Math.min(choices.length - 1, place))].focus();
    event.preventDefault(); // else a radio button would be chosen, or the page scrolled
  });
}
