// The action: what to ask, and its answer as bars.

import { make, short } from "./dom.js";

const DATATYPES = { bool: "BOOL", float16: "FP16", float32: "FP32", float64: "FP64" };
const MOST_CHOICES = 32;

/**
 * The protocol's request for observations as `ObservationForm.read` gives them; `seed` is null for the most likely action,
 * and `carried` are the inputs that carry a state.
 */
export function inferRequest(manifest, observation, seed, carried) {
  const rows = manifest.graph.batch ?? 1;
  const inputs = observation.map(({ spec, values }) => ({
    name: spec.name,
    datatype: DATATYPES[spec.dtype] ?? spec.dtype.toUpperCase(),
    shape: [rows, ...spec.shape],
    data: Array.from({ length: rows }, () => (spec.dtype === "bool" ? values.map(Boolean) : values)).flat(),
  }));
  inputs.push(...carried);
  return seed === null ? { inputs } : { parameters: { deterministic: false, seed }, inputs };
}

/** The answer's first row, drawn into `root`. */
export function showAction(root, manifest, answer) {
  const outputs = Object.fromEntries(answer.outputs.map((output) => [output.name, output]));
  const { shape, data } = outputs[manifest.action.name];
  const row = data.slice(0, data.length / shape[0]).map(Number);
  const isChoice = manifest.action.shape.length === 0 && manifest.action.high !== null && manifest.action.low !== null;
  const count = manifest.action.high - manifest.action.low + 1;
  if (isChoice && count <= MOST_CHOICES) root.replaceChildren(...choices(manifest.action, row[0], count, outputs.logits));
  else root.replaceChildren(...row.map((value, index) => bar(manifest.action, value, index)));
}

function choices(spec, chosen, count, logits) {
  const probabilities = logits && softmax(logits.data.slice(0, count));
  return Array.from({ length: count }, (_, index) => {
    const value = spec.low + index;
    const isChosen = value === chosen;
    const share = probabilities ? probabilities[index] : Number(isChosen);
    const note = probabilities ? `${(100 * share).toFixed(1)} %` : isChosen ? "chosen" : "";
    return line(`${spec.name} ${value}`, 0, share, note, isChosen, isChosen ? value : null);
  });
}

function softmax(logits) {
  const most = Math.max(...logits);
  const shares = logits.map((logit) => Math.exp(logit - most));
  const total = shares.reduce((sum, share) => sum + share, 0);
  return shares.map((share) => share / total);
}

function bar(spec, value, index) {
  const [low, high] = [spec.low, spec.high].map((limit) => (Array.isArray(limit) ? limit[index] : limit));
  const label = spec.shape.length ? `${spec.name}[${index}]` : spec.name;
  if (low === null || high === null) return line(label, 0, 0, short(value), true, value);
  const place = (point) => (point - low) / (high - low);
  const origin = place(Math.min(high, Math.max(low, 0)));
  const [from, to] = [origin, place(value)].sort((a, b) => a - b);
  return line(label, from, to, short(value), true, value, [low, high]);
}

/** One row: label, a bar from one share of the track's width to another, and what it says. */
function line(label, from, to, note, isStrong, value, ends = null) {
  const filled = make("span", { class: "filled" });
  filled.style.marginLeft = `${100 * from}%`;
  filled.style.width = `${100 * (to - from)}%`;
  const track = make("span", { class: "bar", "aria-hidden": "true" }, filled);
  const under = ends && make("span", { class: "ends", "aria-hidden": "true" }, ...ends.map((end) => make("span", {}, short(end))));
  const cell = make("span", { class: "track" }, track, under);
  return make("div", { class: isStrong ? "element chosen" : "element", "data-value": value }, make("span", {}, label), cell, make("output", {}, note));
}
