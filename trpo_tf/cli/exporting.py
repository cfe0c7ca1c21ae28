"""Commands that export a policy to a bundle, and verify a bundle."""

import dataclasses
import json
import secrets
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from trpo_tf.cli.terminal import FAILED, Flag, fail, print_fields, say, unset
from trpo_tf.errors import UserError
from trpo_tf.export.support.heavy_imports import uncollected
from trpo_tf.support.shell import in_shell


@dataclasses.dataclass(frozen=True)
class Export:
    """Export a run's policy to a bundle; each target is compared with the Keras policy, on cases and whole episodes.

    If a target that is named acts differently or loses return, the export fails: no bundle is left, and the exit status
    is 1. `--target all` leaves such targets out.
    """

    run: Positional[Path]
    """the run folder"""
    out: Path
    """the bundle folder to make"""
    target: Annotated[str, arg(metavar="NAME,...")] = "onnx,savedmodel"
    """onnx (always), savedmodel, onnx-int8, onnx-int8-dynamic, ort, litert, litert-int8, c, c-int8; all: what fits"""
    noise: Annotated[str, arg(metavar="CHOICE")] = "optional"
    """noise input of the ONNX graph, which makes it sample actions: optional, required, or none"""
    opset: int = 17
    """operator set of the ONNX graph, 13 to 18"""
    batch: Annotated[int | None, unset(metavar="INT")] = None
    """batch size of the ONNX graph, by default any"""
    outputs: Annotated[str, unset(metavar="NAME,...")] = ""
    """further outputs of the graph besides the action: distribution, value"""
    episodes: int = 20
    """episodes that every target plays, with seeds from 0 on"""
    accept_loss: Flag = False
    """also write targets that act differently or lose return; the manifest says which"""
    record: Flag = False
    """add a video of an episode to the bundle; the server's console shows it"""
    sign: Annotated[Path | None, unset(metavar="FILE")] = None
    """sign the bundle with this private key"""

    def __call__(self) -> None:
        """Export and print what was written."""
        from trpo_tf.export.support.new_folder import check_new
        from trpo_tf.runs.layout import require_run

        require_run(self.run)
        check_new(self.out)
        with uncollected():
            from trpo_tf.export import GraphForm, ParityError
            from trpo_tf.exporting.run_bundle import export_run, further_outputs
            from trpo_tf.runs.folder import load_run

        run = load_run(self.run)
        form = GraphForm(self.opset, self.noise, self.batch, further_outputs(run, _names(self.outputs)))
        try:
            export_run(
                run,
                self.out,
                targets=_names(self.target),
                form=form,
                episodes=self.episodes,
                accept_loss=self.accept_loss,
                signing_key=self.sign,
                with_episode=self.record,
                observer=lambda step: print(f"... {step}", file=sys.stderr, flush=True),  # noqa: T201
            )
        except ParityError as error:
            say(error.table)
            fail(f"error: {error}; nothing was written (--accept-loss writes it)", FAILED)
        _print_proof(self.out)
        say(f"\nbundle written to {self.out}; serve it with: trpo-tf serve {in_shell(self.out)}")


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check a bundle: every file against its checksum, and every target that runs here against the golden cases.

    Without TensorFlow only policy.onnx is run. The returns shown were measured at export.
    """

    bundle: Positional[Path]
    """the bundle folder"""
    public_key: Annotated[Path | None, unset(metavar="FILE")] = None
    """check the signature with this key"""
    thorough: Flag = False
    """also compare the targets with each other on new cases; needs TensorFlow"""
    seed: Annotated[int | None, unset(metavar="INT")] = None
    """seed of the new cases, by default another each time"""
    json: Flag = False
    """print JSON"""

    def __call__(self) -> None:
        """Verify the bundle and print the result."""
        from trpo_tf.serving.verify import verify

        result = verify(self.bundle, self.public_key)
        fields = {"bundle": str(self.bundle), "verified": True, **dataclasses.asdict(result)}
        # `importlib.util.find_spec` would import parts of it. A module that is None is one that can't be imported.
        if PathFinder.find_spec("tensorflow") is None or sys.modules.get("tensorflow", PathFinder) is None:
            if self.thorough:
                raise UserError("--thorough needs TensorFlow, which is not installed; leave it out")
            print_fields(fields, as_json=self.json)
            return
        from trpo_tf.export.parity.table import full_table
        from trpo_tf.export.parity.verify import verify_targets

        seed = (secrets.randbits(32) if self.seed is None else self.seed) if self.thorough else None
        found = verify_targets(self.bundle, seed)
        if self.json:
            say(json.dumps({**fields, **dataclasses.asdict(found), "seed": seed}))
            return
        print_fields(fields, as_json=False)
        if self.thorough:
            say(f"{found.new_cases} new cases of seed {seed}: every target in floats answers as policy.onnx does")
        say(f"\n{full_table(found.parity, found.sizes, found.latencies)}")
        for name, reason in found.skipped.items():
            say(f"{name} was not run: {reason}")


def _names(text: str) -> list[str]:
    """Split a comma-separated list into its names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _print_proof(bundle: Path) -> None:
    from trpo_tf.export.parity.latency import read_latencies
    from trpo_tf.export.parity.table import full_table
    from trpo_tf.export.targets.table import target_sizes
    from trpo_tf.serving.bundle.manifest import read_manifest

    manifest = read_manifest(bundle)
    say(full_table(manifest.parity, target_sizes(manifest), read_latencies(bundle)))
