"""Write MODEL_CARD.md: what a policy does, how it was trained, how its targets compare, and how to run them."""

from collections.abc import Iterable, Iterator
from typing import Any

from trpo_tf.export.parity.table import columns_of, proof_rows
from trpo_tf.export.targets.table import TARGETS, target_sizes
from trpo_tf.serving import ArraySpec, Manifest

CARD_FILE = "MODEL_CARD.md"


def model_card(manifest: Manifest) -> str:
    """Write the card in Markdown, from the manifest alone."""
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Manifest) -> Iterator[str]:
    origin = manifest.provenance
    environment = origin.get("environment")
    yield f"# {manifest.name}\n"
    yield f"A policy for {environment}." if environment else "A policy: observations in, actions out."
    yield "It takes an observation as the environment gives it and answers an action in the environment's own units;"
    yield "normalisation, network and bounds are inside.\n"
    yield from _table(
        ("array", "name", "dtype", "shape", "bounds"),
        [
            *(("observation", *_array(spec)) for spec in manifest.observation),
            ("action", *_array(manifest.action)),
            *(("further output", *_array(spec)) for spec in manifest.graph.outputs),
            *(("state", spec.name, spec.dtype, str(list(spec.shape)), "") for spec in manifest.state),
        ],
    )
    if manifest.mask:
        yield f"\n`{manifest.mask}` tells which actions are legal. It has a number for each option, those of several"
        yield "choices side by side; 0 or false forbids the option. The policy never answers a forbidden one."
    if manifest.state:
        yield "\nIt remembers: each step takes the state, and `reset`, true where an episode starts. It answers"
        yield "the next state, by the state's name with `next_` before it, which is the state of the next step."
    yield from _training(manifest)
    yield "\n## How the targets compare\n"
    yield "With the Keras policy: largest difference of an action on golden cases and along whole episodes, equal"
    yield "actions (continuous ones to 1e-5 and what rounding may change), share of cases in which one action alone is"
    yield "right, error in 8 bits (1 is that of the best constant action) and that of the worst observation, return of"
    yield "episodes that each plays by itself from the same seeds, and how much that is above Keras's. Latencies of the"
    yield "machine that exported are in latency.json.\n"
    yield from _table(columns_of(manifest.parity), proof_rows(manifest.parity, target_sizes(manifest)))
    accepted = {name: figures["accepted"] for name, figures in manifest.parity.items() if "accepted" in figures}
    for name, reason in accepted.items():
        yield f"\n{name} was accepted although it {reason}."
    yield from _limits(manifest)
    yield "\n## How to run it\n"
    yield "`observation` is an array of the type and shape above, or a dict of arrays by name. Run it in this folder.\n"
    for name in filter(manifest.parity.__contains__, TARGETS):
        language, lines = TARGETS[name].snippet(manifest)
        yield f"{name}, for {TARGETS[name].purpose}:\n\n```{language}\n{lines}```\n"


def _made(config: Any) -> Iterator[str]:
    """Describe how the environment was made, if it differs from the registered one."""
    settings = config.get("environment") if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        return
    # "auto" is the default of a setting that has one, and the others are empty.
    given = {name: value for name, value in settings.items() if value != "auto"}
    shown = {name: ", ".join(value) if isinstance(value, list | tuple) else value for name, value in given.items()}
    if any(shown.values()):
        yield f"The environment was made with {', '.join(f'{name} {value}' for name, value in shown.items() if value)}."


def _training(manifest: Manifest) -> Iterator[str]:
    origin = manifest.provenance
    if "algorithm" not in origin:
        return
    summary = origin.get("summary", {})
    yield "\n## How it was trained\n"
    yield f"With {origin['algorithm']}, {origin['steps']:,} environment steps, seed {origin['seed']}."
    yield from _made(origin.get("config"))
    for stage, when in (("untrained", "before training"), ("trained", "after training")):
        result = summary.get(stage, {})
        if result.get("episodes"):
            yield (
                f"Mean return {when}: {result['mean_return']:.4g} +- {result['std_return']:.3g} over "
                f"{result['episodes']} episodes."
            )
            for name in ("is_success", "success"):
                if (rate := result.get("info", {}).get(name)) is not None:
                    yield f"Success rate {when} (`{name}`): {rate:.2f}."
    yield "Every setting and version is in manifest.json."


def _limits(manifest: Manifest) -> Iterator[str]:
    yield "\n## Limits\n"
    yield "- It knows what it met in training; far from that its actions mean nothing."
    if manifest.graph.noise == "none":
        yield "- policy.onnx has no noise input: it acts deterministically."
    else:
        yield f"- Actions are deterministic unless it is given noise, standard {manifest.noise.law}."
    if manifest.graph.batch is not None:
        yield f"- The ONNX, ORT and LiteRT files take batches of {manifest.graph.batch} and no other."
    for name, figures in manifest.parity.items():
        if "without" in figures:
            yield f"- {name} answers the action alone, without {', '.join(figures['without'])}."
    if any(not figures["exact"] for figures in manifest.parity.values()):
        yield "- Targets of 8 bits act nearly the same only; what counts is the return in the table."
    if any(figures.get("amplifies_rounding") for figures in manifest.parity.values()):
        yield "- The environment amplifies rounding, so returns of targets in floats differ by chance."
    if not all(figures.get("repeatable", True) for figures in manifest.parity.values()):
        yield "- The environment plays another episode from the same seed: no return was compared."
    elif not any("return" in figures for figures in manifest.parity.values()):
        yield "- No environment was there at export: no return was compared."


def _array(spec: ArraySpec) -> tuple[str, ...]:
    low, high = spec.bounds()
    bounds = f"{low.min():g} to {high.max():g}" if low.size else ""
    return spec.name, spec.dtype, str(list(spec.shape)), bounds


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    columns = list(columns)
    for cells in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(cells)} |"
