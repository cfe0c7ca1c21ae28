// The page: which model, what is asked of it, and what the server reports about itself.

import { inferRequest, showAction } from "./action.js";
import { showFacts } from "./about.js";
import { ask, Problem, useKey } from "./api.js";
import { make, seconds } from "./dom.js";
import { ObservationForm } from "./form.js";
import { Memory } from "./memory.js";
import { parse, Rates, requestsOf, showMetrics } from "./metrics.js";

const DEBOUNCE = 40;
const METRICS_EVERY = 2000;
const RETRY_AFTER = 2000;

const at = (id) => document.getElementById(id);

let model = null;
let form = null;
let memory = null;
let steps = 0; // that are to be taken
let rates = new Rates();
let hasMetrics = true;
let isAsking = false;
let isChanged = false;
let timer = 0;
let film = null;

function say(words, isWrong = false) {
  const status = at("status");
  if (status.textContent !== words) status.textContent = words;
  status.classList.toggle("wrong", isWrong);
}

/** Show a problem; ask for the key if it is missing or wrong, and try again later if the server may come back. */
function report(problem, retry) {
  if (!(problem instanceof Problem)) throw problem;
  const needsKey = problem.status === 401;
  const passes = problem.status === 0 || problem.status === 503;
  say(problem.message + (passes && retry ? " Trying again ..." : ""), true);
  at("key-form").hidden = !needsKey;
  if (needsKey) {
    at("main").hidden = at("choice").hidden = true;
    at("key").focus();
  } else if (passes && retry) {
    setTimeout(retry, RETRY_AFTER);
  }
}

async function begin() {
  try {
    const catalog = await (await ask("console/models")).json();
    at("server").textContent = catalog.server;
    at("key-form").hidden = true;
    if (!catalog.models.length) {
      say("The server has no model loaded. Looking again ...");
      setTimeout(begin, RETRY_AFTER);
      return;
    }
    offer(catalog.models);
  } catch (problem) {
    report(problem, begin);
  }
}

function offer(models) {
  const select = at("model");
  select.replaceChildren(...models.map((each, index) => make("option", { value: index }, `${each.name}, version ${each.version}`)));
  select.onchange = () => show(models[select.value]);
  at("main").hidden = at("choice").hidden = false;
  show(models[0]);
}

function show(chosen) {
  model = chosen;
  rates = new Rates();
  hasMetrics = true;
  form = new ObservationForm(at("observation"), model.manifest, changed);
  memory = new Memory(at("state"), model.manifest);
  at("memory").hidden = !memory.isUsed;
  steps = 0;
  const cannotSample = model.manifest.graph.noise === "none";
  document.querySelector("input[value=sampled]").disabled = at("seed").disabled = cannotSample;
  if (cannotSample) document.querySelector("input[value=deterministic]").checked = true;
  at("action").replaceChildren();
  at("episode").hidden = !model.episode;
  stopFilm();
  showFacts(at("facts"), model);
  changed();
  look();
}

function changed() {
  clearTimeout(timer);
  timer = setTimeout(act, DEBOUNCE);
}

/** Ask for an action, one request at a time: what changes meanwhile is asked for after that. */
async function act() {
  isChanged = true;
  if (isAsking) return;
  isAsking = true;
  try {
    while (isChanged) {
      isChanged = false;
      const asked = memory;
      const answer = await actOnce();
      if (asked !== memory) continue;
      if (answer && steps > 0) {
        memory.advance(answer);
        isChanged = true;
      }
      steps = answer ? Math.max(0, steps - 1) : 0;
    }
  } finally {
    isAsking = false;
  }
}

/** The answer to what is asked now, once it is shown; nothing if there is none. */
async function actOnce() {
  const asked = model;
  const started = memory;
  let request;
  try {
    request = inferRequest(asked.manifest, form.read(), seed(), memory.inputs());
  } catch (error) {
    say(`${error.message}.`, true);
    return;
  }
  at("request").textContent = `POST v2/models/${asked.name}/versions/${asked.version}/infer\n${JSON.stringify(request)}`;
  try {
    const began = performance.now();
    const path = `v2/models/${encodeURIComponent(asked.name)}/versions/${encodeURIComponent(asked.version)}/infer`;
    const answer = await (await ask(path, request)).json();
    if (asked !== model || started !== memory) return;
    showAction(at("action"), asked.manifest, answer);
    at("answered").textContent = `Answered in ${seconds((performance.now() - began) / 1000)}, the way to the browser included.`;
    say(`Version ${answer.model_version} of ${answer.model_name} answers.`);
    return answer;
  } catch (problem) {
    report(problem, changed);
  }
}

/** The seed to sample with, or null for the most likely action. */
function seed() {
  if (document.querySelector("input[name=mode]:checked").value !== "sampled") return null;
  const value = Number(at("seed").value);
  if (at("seed").value === "" || !Number.isInteger(value) || value < 0) throw new Error("the seed must be a whole number, 0 or more");
  return value;
}

async function look() {
  if (!model || at("main").hidden || document.hidden || !hasMetrics) return;
  const asked = model;
  try {
    const samples = parse(await (await ask("metrics")).text());
    if (asked !== model) return;
    rates.add(performance.now() / 1000, requestsOf(samples, asked.name));
    showMetrics(at("charts"), samples, rates, asked);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    hasMetrics = problem.status !== 404;
    const words = hasMetrics ? problem.message : "This server has no metrics.";
    at("charts").replaceChildren(make("p", { class: "faint" }, words));
  }
}

async function playEpisode() {
  try {
    const blob = await (await ask(model.episode)).blob();
    stopFilm();
    film = URL.createObjectURL(blob);
    const isVideo = blob.type.startsWith("video/");
    const label = `An episode of ${model.name}`;
    const screen = isVideo
      ? make("video", { src: film, controls: "", loop: "", muted: "", playsinline: "", "aria-label": label })
      : make("img", { src: film, alt: label });
    at("screen").replaceChildren(screen);
    at("play").hidden = true;
    if (isVideo) {
      screen.muted = true;
      screen.focus();
      await screen.play();
    }
  } catch (problem) {
    report(problem, null);
  }
}

function stopFilm() {
  at("screen").replaceChildren();
  at("play").hidden = false;
  if (film) URL.revokeObjectURL(film);
  film = null;
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value);
  at("key").value = "";
  begin();
});
at("reset").addEventListener("click", () => form.reset());
at("random").addEventListener("click", () => form.randomize());
at("mode").addEventListener("input", (event) => {
  if (event.target.id === "seed") document.querySelector("input[value=sampled]").checked = true;
  changed();
});
at("step").addEventListener("click", () => {
  steps += 1;
  act();
});
at("restart").addEventListener("click", () => {
  steps = 0;
  memory = new Memory(at("state"), model.manifest);
  changed();
});
at("play").addEventListener("click", playEpisode);
setInterval(look, METRICS_EVERY);
begin();
