// Figures of a model from /metrics: requests a second, how long they take, and what is observed against training.

import { bytes, make, seconds, short, svg, table, terms } from "./dom.js";

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const MOST_POINTS = 60;
const MOST_ELEMENTS = 16;
const WIDTH = 320;
const HEIGHT = 110;

/** Prometheus' text: a list of {labels, value} for each name. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const [, name, inner, shown] = SAMPLE.exec(line) ?? [];
    if (!name) continue;
    const labels = {};
    for (const [, label, value] of (inner ?? "").matchAll(LABEL)) {
      labels[label] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    const value = shown === "+Inf" ? Infinity : Number(shown);
    samples.set(name, [...(samples.get(name) ?? []), { labels, value }]);
  }
  return samples;
}

/** Requests a second of one model, from one look to the next. */
export class Rates {
  constructor() {
    this.last = null;
    this.points = [];
  }

  add(time, total) {
    if (this.last && time > this.last.time) {
      this.points.push(Math.max(0, total - this.last.total) / (time - this.last.time));
      this.points = this.points.slice(-MOST_POINTS);
    }
    this.last = { time, total };
  }
}

/** Counts of requests between two bounds in seconds: [{low, high, count}], and the seconds that a share took at most. */
export function histogram(samples, model) {
  const cumulative = new Map();
  for (const { labels, value } of of(samples, "trpo_tf_request_seconds_bucket", model)) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    cumulative.set(bound, (cumulative.get(bound) ?? 0) + value);
  }
  const bounds = [...cumulative.keys()].sort((a, b) => a - b);
  return bounds.map((high, index) => {
    const low = index ? bounds[index - 1] : 0;
    return { low, high, count: cumulative.get(high) - (index ? cumulative.get(low) : 0) };
  });
}

export function quantile(buckets, share) {
  const wanted = share * sum(buckets, (bucket) => bucket.count);
  let seen = 0;
  for (const { low, high, count } of buckets) {
    seen += count;
    if (count && seen >= wanted) return Number.isFinite(high) ? high : low;
  }
  return null;
}

/** Draws everything that is known of a model into `root`. */
export function showMetrics(root, samples, rates, model) {
  const buckets = histogram(samples, model.name);
  root.replaceChildren(
    panel("Requests a second", rates.points.length ? short(rates.points.at(-1)) : "", rateChart(rates.points)),
    panel("Latency in the server", latencies(buckets), histogramChart(buckets)),
    driftPanel(samples, model),
    panel("Server", "", counters(samples, model)),
  );
}

const of = (samples, name, model) => (samples.get(name) ?? []).filter(({ labels }) => labels.model === model);
const sum = (items, value) => items.reduce((total, item) => total + value(item), 0);
const single = (samples, name) => samples.get(name)?.[0]?.value;

export const requestsOf = (samples, model) => sum(of(samples, "trpo_tf_requests_total", model), ({ value }) => value);

function panel(title, caption, content) {
  return make("figure", {}, make("figcaption", {}, make("b", {}, title), " ", make("span", { class: "faint" }, caption)), content);
}

function latencies(buckets) {
  const [middle, tail] = [quantile(buckets, 0.5), quantile(buckets, 0.99)];
  return middle === null ? "no request yet" : `half within ${seconds(middle)}, 99 % within ${seconds(tail)}`;
}

function chart(label, ...children) {
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...children);
}

function text(x, y, words, anchor = "start") {
  return svg("text", { x, y, "text-anchor": anchor }, words);
}

function rateChart(points) {
  const most = Math.max(1, ...points);
  const x = (index) => ((index + MOST_POINTS - points.length) * WIDTH) / (MOST_POINTS - 1);
  const y = (rate) => HEIGHT - 18 - (rate / most) * (HEIGHT - 34);
  const path = points.map((rate, index) => `${x(index).toFixed(1)},${y(rate).toFixed(1)}`).join(" ");
  const baseline = svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: y(0), y2: y(0) });
  const area = points.length > 1 && svg("polygon", { class: "area", points: `${x(0).toFixed(1)},${y(0)} ${path} ${WIDTH},${y(0)}` });
  return chart("Requests a second over the last minutes", ...(area ? [area] : []), baseline,
    svg("polyline", { class: "curve", points: path }), text(0, 10, `${short(most)} / s`), text(WIDTH, HEIGHT - 4, "now", "end"));
}

function histogramChart(buckets) {
  const first = buckets.findIndex((bucket) => bucket.count);
  const last = buckets.findLastIndex((bucket) => bucket.count);
  if (first < 0) return chart("No request yet", svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT - 18, y2: HEIGHT - 18 }));
  const shown = buckets.slice(Math.max(0, first - 1), last + 2);
  const most = Math.max(...shown.map((bucket) => bucket.count));
  const width = WIDTH / shown.length;
  const bars = shown.map(({ low, high, count }, index) => {
    const height = (count / most) * (HEIGHT - 30);
    const tooltip = `${count} within ${seconds(low)} to ${Number.isFinite(high) ? seconds(high) : "more"}`;
    return svg("rect", { class: "column-bar", x: index * width + 1, width: Math.max(1, width - 2), y: HEIGHT - 18 - height, height }, svg("title", {}, tooltip));
  });
  const end = shown.at(-1).high;
  return chart("Histogram of latencies", ...bars, svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT - 18, y2: HEIGHT - 18 }),
    text(0, HEIGHT - 4, seconds(shown[0].low)), text(WIDTH, HEIGHT - 4, Number.isFinite(end) ? seconds(end) : `over ${seconds(shown.at(-1).low)}`, "end"));
}

/** How far, in deviations of the training, the mean of each element has moved; the farthest first. */
export function moved(samples, model) {
  const isOwn = ({ labels }) => labels.version === model.version;
  const found = of(samples, "trpo_tf_observation_mean", model.name).filter(isOwn).flatMap(({ labels, value }) => {
    const training = model.manifest.statistics?.[labels.input];
    if (!training) return [];
    const index = Number(labels.element);
    return [{ label: `${labels.input}[${index}]`, distance: (value - training.mean[index]) / training.stddev[index] }];
  });
  return found.sort((a, b) => Math.abs(b.distance) - Math.abs(a.distance));
}

function driftPanel(samples, model) {
  const isOwn = ({ labels }) => labels.version === model.version;
  const rows = of(samples, "trpo_tf_drift_observations", model.name).find(isOwn)?.value ?? 0;
  const drift = of(samples, "trpo_tf_observation_drift", model.name).find(isOwn)?.value;
  if (drift === undefined) {
    const reason = model.manifest.statistics ? "nothing observed yet" : "the bundle has no statistics of its training";
    return panel("Observations against training", reason, make("p", { class: "faint" }, "–"));
  }
  const summary = `farthest mean ${short(drift)} deviations off, of ${rows} observations`;
  const elements = moved(samples, model).slice(0, MOST_ELEMENTS);
  const height = 14;
  const x = (distance) => 200 + Math.max(-3, Math.min(3, distance)) * 38;
  const marks = elements.flatMap(({ label, distance }, index) => {
    const y = index * height + 10;
    return [text(0, y + 3, label), svg("line", { class: "axis", x1: x(-3), x2: x(3), y1: y, y2: y }),
      svg("circle", { class: Math.abs(distance) > 1 ? "mark far" : "mark", cx: x(distance), cy: y, r: 4 }, svg("title", {}, short(distance)))];
  });
  const bottom = elements.length * height + 14;
  return panel("Observations against training", summary, svg("svg", { viewBox: `0 0 ${WIDTH} ${bottom}`, role: "img", "aria-label": summary },
    svg("line", { class: "axis", x1: 200, x2: 200, y1: 0, y2: bottom - 12 }), ...marks,
    text(x(-3), bottom - 1, "-3 sd", "middle"), text(200, bottom - 1, "mean", "middle"), text(x(3), bottom - 1, "+3 sd", "middle")));
}

function counters(samples, model) {
  const codes = {};
  for (const { labels, value } of of(samples, "trpo_tf_requests_total", model.name)) {
    codes[labels.code] = (codes[labels.code] ?? 0) + value;
  }
  const memory = single(samples, "process_resident_memory_bytes");
  const began = single(samples, "process_start_time_seconds");
  const known = {
    "under way": single(samples, "trpo_tf_requests_in_flight"),
    connections: single(samples, "trpo_tf_connections"),
    memory: memory === undefined ? undefined : bytes(memory),
    "up since": began === undefined ? undefined : new Date(1000 * began).toLocaleString(),
  };
  const facts = terms(Object.fromEntries(Object.entries(known).filter(([, value]) => value !== undefined)));
  const rows = Object.entries(codes);
  return make("div", {}, facts, rows.length ? table(["answered with", "requests"], rows, "Requests by status") : null);
}
