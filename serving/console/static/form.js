// The observation: a slider and a number for each element, or, where there are many, a field of JSON.

import { make, short } from "./dom.js";
import { maskPart } from "./mask.js";

const MOST_SLIDERS = 64;
const UNBOUNDED = 1e6; // a larger bound is shown as none
const DEVIATIONS = 3;
const SOME = 5;

const size = (spec) => spec.shape.reduce((product, length) => product * length, 1);
const isWhole = (spec) => !spec.dtype.startsWith("float");
const bound = (value, index) => (Array.isArray(value) ? value[index] : value);

/** Where an element's slider begins and ends. `training` is the manifest's statistics of the input, if there are any. */
export function range(spec, index, training) {
  const mean = training?.mean[index] ?? 0;
  const reach = training ? DEVIATIONS * training.stddev[index] : SOME;
  const near = [mean - reach, mean + reach];
  return ["low", "high"].map((side, end) => {
    const limit = bound(spec[side], index);
    const isFar = limit === null || Math.abs(limit) > UNBOUNDED;
    const value = isFar ? Number(near[end].toPrecision(3)) : limit;
    return isWhole(spec) ? Math.round(value) : value;
  });
}

/** The form for a manifest's observation; `onChange` is called after each change. */
export class ObservationForm {
  constructor(root, manifest, onChange) {
    this.specs = manifest.observation;
    this.onChange = onChange;
    this.parts = this.specs.map((spec) => spec.name === manifest.mask
      ? maskPart(spec, manifest.action, onChange) : this.part(spec, manifest.statistics?.[spec.name]));
    root.replaceChildren(...this.parts.map((part) => part.element));
  }

  part(spec, training) {
    const total = this.specs.reduce((sum, other) => sum + size(other), 0);
    return total > MOST_SLIDERS ? this.text(spec, training) : this.sliders(spec, training);
  }

  sliders(spec, training) {
    const fields = Array.from({ length: size(spec) }, (_, index) => this.slider(spec, index, training));
    const name = `${spec.name} · ${spec.dtype}`;
    return {
      element: make("fieldset", { class: "sliders" }, make("legend", {}, name), ...fields.map((field) => field.element)),
      read: () => fields.map((field) => field.read()),
      reset: () => fields.forEach((field, index) => field.write(start(spec, index, training))),
      randomize: () => fields.forEach((field, index) => field.write(anywhere(spec, index, training))),
    };
  }

  slider(spec, index, training) {
    const [low, high] = range(spec, index, training);
    const label = spec.shape.length ? `${spec.name}[${index}]` : spec.name;
    const step = isWhole(spec) ? 1 : "any";
    const slider = make("input", { type: "range", min: low, max: high, step, "aria-label": `${label}, slider` });
    const number = make("input", { type: "number", step, id: `value-${spec.name}-${index}` });
    const write = (value) => {
      slider.value = value;
      number.value = short(Number(value));
      number.classList.remove("wrong");
    };
    slider.addEventListener("input", () => {
      write(slider.value);
      this.onChange();
    });
    slider.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
      if (!steps || isWhole(spec)) return; // of any step browsers have their own idea
      event.preventDefault();
      write(Math.min(high, Math.max(low, Number(slider.value) + (steps * (high - low)) / 100)));
      this.onChange();
    });
    number.addEventListener("input", () => {
      const isNumber = number.value !== "" && Number.isFinite(Number(number.value));
      number.classList.toggle("wrong", !isNumber);
      if (isNumber) slider.value = number.value;
      this.onChange();
    });
    write(start(spec, index, training));
    const read = () => {
      if (number.value === "") throw new Error(`${label} is no number`);
      return Number(number.value);
    };
    const ends = make("span", { class: "ends", "aria-hidden": "true" }, make("span", {}, short(low)), make("span", {}, short(high)));
    const element = make("div", { class: "element" },
      make("label", { for: number.id }, label), make("div", { class: "track" }, slider, ends), number);
    return { element, read, write };
  }

  text(spec, training) {
    const count = size(spec);
    const area = make("textarea", { id: `value-${spec.name}`, rows: 6, spellcheck: "false" });
    area.addEventListener("input", this.onChange);
    const write = (choose) => {
      area.value = JSON.stringify(Array.from({ length: count }, (_, index) => choose(spec, index, training)).map((value) => Number(short(value))));
    };
    write(start);
    const shape = `${spec.dtype} [${spec.shape.join(", ")}]`;
    return {
      element: make("div", { class: "text" },
        make("label", { for: area.id }, `${spec.name}: ${count} numbers as JSON, row by row (${shape})`), area),
      read: () => numbers(area.value, count, spec.name),
      reset: () => write(start),
      randomize: () => write(anywhere),
    };
  }

  /** Values in row-major order, by input. Raises an `Error` that says what is wrong. */
  read() {
    return this.specs.map((spec, place) => ({ spec, values: this.parts[place].read() }));
  }

  reset() {
    this.parts.forEach((part) => part.reset());
    this.onChange();
  }

  randomize() {
    this.parts.forEach((part) => part.randomize());
    this.onChange();
  }
}

/** What an element is at first: the mean of training, or 0, or the bound that is nearest to it. */
function start(spec, index, training) {
  const [low, high] = range(spec, index, training);
  const value = Math.min(high, Math.max(low, training?.mean[index] ?? 0));
  return isWhole(spec) ? Math.round(value) : value;
}

function anywhere(spec, index, training) {
  const [low, high] = range(spec, index, training);
  const part = Math.random();
  return isWhole(spec) ? Math.floor(low + part * (high - low + 1)) : low + part * (high - low);
}

function numbers(text, count, name) {
  let values;
  try {
    values = JSON.parse(text).flat(Infinity);
  } catch {
    throw new Error(`${name} is no list in JSON`);
  }
  if (values.length !== count) throw new Error(`${name} has ${values.length} numbers, not ${count}`);
  if (!values.every((value) => typeof value === "number")) throw new Error(`${name} holds something else than numbers`);
  return values;
}
