// The mask of legal actions: a box for each option of each choice, checked where it is legal.

import { make } from "./dom.js";

const flat = (value) => (Array.isArray(value) ? value.flat(Infinity) : [value]);

/** The options of an action, choice by choice, as the mask has them. */
function optionsOf(action) {
  const [low, high] = [flat(action.low), flat(action.high)];
  const choices = action.shape.reduce((product, length) => product * length, 1);
  const at = (bounds, index) => bounds[bounds.length === 1 ? 0 : index];
  return Array.from({ length: choices }, (_, index) => {
    const first = at(low, index);
    const label = action.shape.length ? `${action.name}[${index}]` : action.name;
    return Array.from({ length: at(high, index) - first + 1 }, (_, option) => `${label} ${first + option}`);
  });
}

/** A part of the form, as `ObservationForm.sliders` makes them. At first every option is legal. */
export function maskPart(spec, action, onChange) {
  const choices = optionsOf(action).map((labels) => labels.map((label) => {
    const input = make("input", { type: "checkbox", id: `mask-${label.replaceAll(/\W+/g, "-")}`, checked: "" });
    input.addEventListener("change", onChange);
    return { input, element: make("label", { for: input.id }, input, ` ${label}`) };
  }));
  const check = (isLegal) => choices.forEach((choice) => {
    choice.forEach(({ input }) => (input.checked = isLegal()));
    if (!choice.some(({ input }) => input.checked)) choice.forEach(({ input }) => (input.checked = true));
  });
  const fields = choices.map((choice) => make("div", { class: "options" }, ...choice.map(({ element }) => element)));
  return {
    element: make("fieldset", { class: "mask" }, make("legend", {}, `${spec.name} · legal actions`), ...fields),
    read: () => choices.flat().map(({ input }) => Number(input.checked)),
    reset: () => check(() => true),
    randomize: () => check(() => Math.random() < 0.5),
  };
}
