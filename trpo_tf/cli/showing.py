"""Commands that show what was trained: record, report."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from trpo_tf.cli.terminal import Flag, say, unset
from trpo_tf.cli.training import is_bundle
from trpo_tf.config.environment import Environment
from trpo_tf.errors import UserError
from trpo_tf.export.support.heavy_imports import uncollected

if TYPE_CHECKING:
    from trpo_tf.evaluation.video import Recording


@dataclasses.dataclass(frozen=True)
class Record:
    """Record an episode of a run's or a bundle's policy as a video, .mp4 or .gif. It needs no display."""

    source: Positional[Path]
    """a run folder or a bundle folder"""
    out: Annotated[Path, arg(metavar="FILE")]
    """the file to write: .mp4 (needs the `video` extra) or .gif"""
    seed: int = 1_000_000
    """seed of the episode and of sampled actions"""
    stochastic: Flag = False
    """sample actions instead of taking the most likely"""
    env_id: Annotated[str | None, unset(metavar="NAME")] = None
    """environment, if not the one that the policy was trained on"""
    width: int = 480
    """largest width of the video, in pixels"""
    max_seconds: float = 20.0
    """largest length of the video; a longer episode is cut"""
    json: Flag = False
    """print JSON"""

    def __call__(self) -> None:
        """Record the episode, and print its length, size and return."""
        from trpo_tf.support.atomic_write import write_atomically

        recording = self._recording()
        write_atomically(self.out, recording.video)
        if self.json:
            say(json.dumps({"file": str(self.out), "bytes": len(recording.video), **recording.to_dict()}))
            return
        say(
            f"{self.out}: {recording.frames / recording.frames_per_second:.1f} s, {len(recording.video):,} bytes; "
            f"return {recording.episode_return:.1f} {'of' if recording.is_whole else 'so far, after'} "
            f"{recording.steps:,} steps"
        )

    def _recording(self) -> "Recording":
        from trpo_tf.evaluation.recorder import RecordOptions, record_apart
        from trpo_tf.evaluation.video import record
        from trpo_tf.serving import load

        kind = self.out.suffix.removeprefix(".")
        options = RecordOptions(
            seed=self.seed, deterministic=not self.stochastic, width=self.width, max_seconds=self.max_seconds
        )
        if is_bundle(self.source):
            policy = load(self.source)
            return record(policy, self._environment(Environment.recorded(policy.manifest.provenance)), kind, **options)
        from trpo_tf.runs.layout import require_run

        require_run(self.source)
        with uncollected():
            from trpo_tf.exporting.in_process import converted
            from trpo_tf.runs.folder import load_run

        run = load_run(self.source)
        return record_apart(
            *converted(run.policy, run.config.env_id, run.config),
            self._environment(run.config.made_environment),
            kind,
            **options,
        )

    def _environment(self, own: Environment | None) -> str | Environment:
        environment = self.env_id or own
        if environment is None:
            raise UserError(f"{self.source} names no environment; give one with --env-id")
        return environment


@dataclasses.dataclass(frozen=True)
class Report:
    """Write a run's report as one HTML file, even during training: curves, time, settings, versions, scores, export."""

    run: Positional[Path]
    """the run folder"""
    out: Annotated[Path | None, unset(metavar="FILE")] = None
    """the file to write, by default report.html in the run's folder"""
    bundle: Annotated[Path | None, unset(metavar="FOLDER")] = None
    """a bundle of this run, if it is neither in the run's folder nor next to it"""

    def __call__(self) -> None:
        """Write the report."""
        from trpo_tf.reporting.run_report import html_report, read_story
        from trpo_tf.support.atomic_write import write_atomically

        text = html_report(read_story(self.run, self.bundle))
        out = self.out or self.run / "report.html"
        write_atomically(out, text.encode())
        say(f"report written to {out}")
