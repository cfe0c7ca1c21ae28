// What a bundle says of itself.

import { bytes, make, short, table, terms } from "./dom.js";

const MOST_BOUNDS = 4;

/** Draws specification, provenance and comparison of a model into `root`. */
export function showFacts(root, model) {
  const { manifest } = model;
  const { config, summary, versions, ...rest } = manifest.provenance;
  const simple = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== null && typeof value !== "object"));
  const graph = manifest.files["policy.onnx"];
  root.replaceChildren(
    table(["array", "type", "shape", "least", "most"], [...manifest.observation, manifest.action, ...manifest.graph.outputs, ...(manifest.state ?? []).map(remembered)].map(spec), "Inputs and outputs"),
    terms({
      ...simple,
      ...returns(summary),
      noise: manifest.graph.noise === "none" ? "none: it acts deterministically" : `${manifest.noise.law}, [${manifest.noise.shape}]`,
      "policy.onnx": `${bytes(graph.size)}, sha256 ${graph.sha256}`,
    }),
    more("How each target compares with the trained policy", comparison(manifest.parity)),
    more("Versions", versions && terms(versions)),
    more("Settings of the training", config && make("pre", { tabindex: "0" }, JSON.stringify(config, null, 2))),
  );
}

function spec(array) {
  return [array.name, array.dtype, `[${array.shape.join(", ")}]`, bounds(array.low), bounds(array.high)];
}

/** A state as an array without bounds. */
function remembered(state) {
  return { ...state, low: null, high: null };
}

function bounds(values) {
  const one = (value) => (value === null ? "–" : short(value));
  if (!Array.isArray(values)) return one(values);
  const shown = values.slice(0, MOST_BOUNDS).map(one).join(", ");
  return values.length > MOST_BOUNDS ? `${shown}, ...` : shown;
}

function returns(summary) {
  if (!summary?.untrained) return {};
  const spread = ({ mean_return: mean, std_return: deviation }) => `${short(mean)} ± ${short(deviation)}`;
  return {
    ...(summary.untrained?.episodes ? { "return untrained": spread(summary.untrained) } : {}),
    ...(summary.trained?.episodes ? { "return trained": spread(summary.trained) } : {}),
  };
}

function comparison(parity) {
  const targets = Object.entries(parity);
  const isPlain = (value) => typeof value === "number" || typeof value === "string" || typeof value === "boolean";
  const columns = [...new Set(targets.flatMap(([, figures]) => Object.keys(figures).filter((name) => isPlain(figures[name]))))];
  if (!columns.length) return null;
  const rows = targets.map(([name, figures]) => [name, ...columns.map((column) => (isPlain(figures[column]) ? short(figures[column]) : "–"))]);
  return table(["target", ...columns.map((column) => column.replaceAll("_", " "))], rows, "Comparison of targets");
}

function more(title, content) {
  return content ? make("details", {}, make("summary", {}, title), content) : "";
}
