"""Scores of other trainers, which come with the package (benchmark/peers/README.md): a CSV file each, a row a run."""

import csv
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from trpo_tf.errors import UserError

PEERS = resources.files("trpo_tf") / "benchmark" / "peers"


class PeerRun(NamedTuple):
    """A run of a peer: mean and deviation of the return over 20 deterministic episodes at the end."""

    environment: str
    seed: int
    steps: int
    mean_return: float
    std_return: float
    seconds: float
    version: str
    settings: str
    """zoo: RL Baselines3 Zoo's for the environment; default: the peer's own, for every environment"""
    untrained_return: float | None
    """mean return of as many episodes before training, actions sampled; None if it was not measured"""


def peer_names() -> list[str]:
    """Return the names of peers whose scores are known."""
    return sorted(path.name.removesuffix(".csv") for path in PEERS.iterdir() if path.name.endswith(".csv"))


def load_peer(name: str) -> list[PeerRun]:
    """Load a peer's runs. Raises `UserError` for an unknown peer."""
    if name not in peer_names():
        raise UserError(f"peer {name!r} is unknown; choose one of {', '.join(peer_names())}")
    return [_run(row) for row in csv.DictReader((PEERS / f"{name}.csv").read_text().splitlines())]


def runs_in(runs: Sequence[PeerRun], environment: str, steps: int, settings: str) -> list[PeerRun]:
    """Return the runs in one environment with these steps and settings."""
    wanted = (environment, steps, settings)
    return [run for run in runs if (run.environment, run.steps, run.settings) == wanted]


def _run(row: dict[str, str]) -> PeerRun:
    return PeerRun(
        row["environment"],
        int(row["seed"]),
        int(row["steps"]),
        float(row["mean_return"]),
        float(row["std_return"]),
        float(row["seconds"]),
        row["version"],
        row["settings"],
        float(row["untrained_return"]) if row["untrained_return"] else None,
    )
