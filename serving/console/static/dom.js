// Elements and numbers.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; an attribute that is false or null is left out. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Four significant digits, without trailing zeros. */
export function short(number) {
  return typeof number === "number" && !Number.isInteger(number) ? String(Number(number.toPrecision(4))) : String(number);
}

export function seconds(value) {
  if (value < 1e-3) return `${short(value * 1e6)} us`;
  return value < 1 ? `${short(value * 1e3)} ms` : `${short(value)} s`;
}

export function bytes(value) {
  return value < 2 ** 20 ? `${Math.round(value / 2 ** 10)} KiB` : `${(value / 2 ** 20).toFixed(1)} MiB`;
}

/** A list of terms and what they are. */
export function terms(values) {
  return make("dl", {}, ...Object.entries(values).flatMap(([term, value]) =>
    [make("dt", {}, term), make("dd", {}, value instanceof Node ? value : String(value))]));
}

/** A table, which scrolls by itself where it is too wide. */
export function table(heads, rows, label) {
  const cells = (tag, values) => make("tr", {}, ...values.map((value) => make(tag, {}, String(value))));
  return make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": label }, make("table", {},
    make("thead", {}, cells("th", heads)), make("tbody", {}, ...rows.map((row) => cells("td", row)))));
}
