// The episode of a policy with state: what the policy remembers before the next step.

import { make, short, terms } from "./dom.js";

const MOST_NUMBERS = 64;
const DATATYPES = { bool: "BOOL", float16: "FP16", float32: "FP32", float64: "FP64" };

/** The state of one episode, drawn into `root`. The server keeps none of it: the page sends it with each request. */
export class Memory {
  constructor(root, manifest) {
    this.root = root;
    this.specs = manifest.state ?? [];
    this.rows = manifest.graph.batch ?? 1;
    this.state = null;
    this.steps = 0;
    this.draw();
  }

  get isUsed() {
    return this.specs.length > 0;
  }

  /** The inputs of the next step that carry the state; at an episode's start only `reset`. */
  inputs() {
    if (!this.isUsed) return [];
    if (this.state === null) return [{ name: "reset", datatype: "BOOL", shape: [this.rows], data: Array(this.rows).fill(true) }];
    return this.specs.map((spec) => ({
      name: spec.name,
      datatype: DATATYPES[spec.dtype] ?? spec.dtype.toUpperCase(),
      shape: [this.rows, ...spec.shape],
      data: this.state[spec.name],
    }));
  }

  /** Take the step that an answer describes. */
  advance(answer) {
    const outputs = Object.fromEntries(answer.outputs.map((output) => [output.name, output.data]));
    this.state = Object.fromEntries(this.specs.map((spec) => [spec.name, outputs[`next_${spec.name}`]]));
    this.steps += 1;
    this.draw();
  }

  draw() {
    if (!this.isUsed) return;
    const taken = this.steps === 1 ? "1 step taken" : `${this.steps} steps taken`;
    const count = make("p", { class: "faint", id: "steps" }, this.state === null ? "The episode has not begun." : `${taken}. The policy remembers:`);
    this.root.replaceChildren(count, this.state === null ? "" : terms(Object.fromEntries(this.specs.map((spec) => [spec.name, this.numbers(spec)]))));
  }

  numbers(spec) {
    const row = this.state[spec.name].slice(0, this.state[spec.name].length / this.rows);
    const shown = row.slice(0, MOST_NUMBERS).map((value) => short(value)).join(", ");
    return make("span", { class: "numbers", "data-name": spec.name }, row.length > MOST_NUMBERS ? `${shown}, ... (${row.length} numbers)` : shown);
  }
}
