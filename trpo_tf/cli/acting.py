"""Commands that run a bundle's policy: predict, bench-latency, serve."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from trpo_tf.cli.terminal import Flag, say, unset
from trpo_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print the action of a bundle's policy for one observation, as JSON.

    A policy with memory takes it for the first one of an episode.
    """

    bundle: Positional[Path]
    """the bundle folder"""
    observation: Annotated[str, arg(metavar="JSON")]
    """the observation as JSON, for example '[0.1, 0, -0.2, 0]'; - reads it from standard input"""
    stochastic: Flag = False
    """sample the action instead of taking the most likely"""
    seed: Annotated[int | None, unset(metavar="INT")] = None
    """seed of the sampled action"""

    def __call__(self) -> None:
        """Compute the action and print it."""
        import numpy as np

        from trpo_tf.serving import load

        text = sys.stdin.read() if self.observation == "-" else self.observation
        try:
            observation = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--observation is not JSON ({error}); give for example '[0.1, 0, -0.2, 0]'") from None
        policy = load(self.bundle)
        rng = np.random.default_rng(self.seed)
        action = policy.start().act(observation, deterministic=not self.stochastic, rng=rng)
        say(json.dumps(np.asarray(action).tolist()))


@dataclasses.dataclass(frozen=True)
class BenchLatency:
    """Measure how long a bundle's policy takes for one action in process, compared with bare ONNX Runtime.

    LiteRT and the TensorFlow SavedModel are measured too, if the bundle holds them and they are installed.
    """

    bundle: Positional[Path]
    """the bundle folder"""
    seconds: float = 5.0
    """seconds to measure each runtime for, split into turns"""
    json: Flag = False
    """print JSON"""

    def __call__(self) -> None:
        """Measure the latencies and print them."""
        from trpo_tf.evaluation.latency import callers, figures, table
        from trpo_tf.serving.runtime.latency import measure_in_turns

        if not 0 < self.seconds < math.inf:
            raise UserError("seconds must be above 0 and finite")
        latencies = figures(measure_in_turns(callers(self.bundle), self.seconds))
        say(json.dumps({"bundle": str(self.bundle), "microseconds": latencies}) if self.json else table(latencies))


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serve a bundle over HTTP with the Open Inference Protocol; `trpo-tf serve --help` shows the server's options."""

    arguments: Positional[tuple[str, ...]] = ()
    """the bundle folder, and options"""

    def __call__(self) -> None:
        """Run the server until it is asked to stop."""
        from trpo_tf.serving.__main__ import main as serve

        sys.exit(serve(self.arguments))
