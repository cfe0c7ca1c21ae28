"""Build the sdist and the wheel, install the wheel where no checkout is near, and use it: `make package-test`."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tests" / "serving" / "bundles" / "wide"
ROOMS = {"trpo_tf": "trpo_tf", "export": "trpo_tf/export", "serving": "trpo_tf/serving"}
"""Folders at the top of the checkout, and where each is installed."""


class PackageError(Exception):
    """What is wrong with the package."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise PackageError(message)


def run(*command: object, cwd: Path) -> str:
    """What a command prints. Raises `PackageError` if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    expect(
        done.returncode == 0, f"{' '.join(map(str, command))} ends with {done.returncode}: {done.stdout}{done.stderr}"
    )
    return done.stdout


def tracked() -> list[Path]:
    """Files of the checkout, also new ones, without those that git ignores."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [path for path in map(Path, listed.split("\0")[:-1]) if os.path.lexists(ROOT / path)]


def copy_checkout(target: Path) -> None:
    """A copy without what earlier builds left: setuptools adds files that an old list of its own names."""
    for path in tracked():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path, follow_symlinks=False)


def environment(folder: Path) -> Path:
    """A fresh virtual environment; its Python."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def pip(python: Path, *arguments: object) -> None:
    run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, cwd=python.parent)


def build(source: Path, scratch: Path) -> tuple[Path, Path, Path]:
    """The sdist, the wheel that is made from it, and the wheel that is made from the checkout itself."""
    python = environment(scratch / "tools")
    pip(python, "install", "build")
    run(python, "-m", "build", "--outdir", scratch / "dist", source, cwd=scratch)
    run(python, "-m", "build", "--wheel", "--outdir", scratch / "direct", source, cwd=scratch)
    (sdist,) = (scratch / "dist").glob("*.tar.gz")
    (wheel,) = (scratch / "dist").glob("*.whl")
    (direct,) = (scratch / "direct").glob("*.whl")
    return sdist, wheel, direct


def installed_name(path: Path) -> str | None:
    """The name in the wheel of a file of the checkout; None of one that is not installed."""
    if path.parts[0] not in ROOMS or (ROOT / path).is_symlink():
        return None
    return str(Path(ROOMS[path.parts[0]], *path.parts[1:]))


def check_contents(sdist: Path, wheel: Path, direct: Path) -> None:
    """Each file of the three folders is in the wheel once, and in the sdist; nothing else is installed."""
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(direct) as other:
        names = archive.namelist()
        twice = [name for name, count in Counter(names).items() if count > 1]
        expect(not twice, f"the wheel has {twice} twice")
        content, same = ({name: file.read(name) for name in file.namelist()} for file in (archive, other))
    differing = sorted(name for name in content.keys() | same.keys() if content.get(name) != same.get(name))
    expect(not differing, f"the wheel of the sdist and that of the checkout differ in {differing}")
    wanted = {name for path in tracked() if (name := installed_name(path)) is not None}
    present = {name for name in names if ".dist-info/" not in name}
    expect(
        present == wanted,
        f"missing in the wheel: {sorted(wanted - present)}; there by mistake: {sorted(present - wanted)}",
    )
    licences = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    expect(len(licences) == 1, "the wheel has no LICENSE")
    with tarfile.open(sdist) as packed:
        links = [member.name for member in packed.getmembers() if member.issym() or member.islnk()]
        members = {member.name.partition("/")[2] for member in packed.getmembers() if member.isfile()}
    expect(not links, f"the sdist has links: {links}")
    expect(wanted <= members, f"missing in the sdist: {sorted(wanted - members)}")


def check_installed(wheel: Path, scratch: Path) -> str:
    """Install the wheel with what serving needs, and use it in a folder of its own; what it calls itself."""
    python = environment(scratch / "installed")
    pip(python, "install", "--require-hashes", "--requirement", ROOT / "requirements" / "serve.txt")
    pip(python, "install", "--no-deps", wheel)
    elsewhere = scratch / "elsewhere"
    shutil.copytree(BUNDLE, elsewhere / "bundle")
    program = python.parent / "trpo-tf"
    version = run(program, "--version", cwd=elsewhere)
    expect(version == run(python, "-m", "trpo_tf", "--version", cwd=elsewhere), "python -m trpo_tf is not trpo-tf")
    expect("max_difference" in run(program, "verify", "bundle", cwd=elsewhere), "verify says nothing of differences")
    expect("usage: trpo-tf serve PATH" in run(program, "serve", "--help", cwd=elsewhere), "serve has no help")
    names = "import importlib.util as u; print([n for n in ('export', 'serving') if u.find_spec(n)])"
    expect(run(python, "-c", names, cwd=elsewhere) == "[]\n", "it takes the names `export` or `serving`")
    return version.strip()


def main() -> None:
    """Build and check, or say what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        copy_checkout(scratch / "source")
        try:
            sdist, wheel, direct = build(scratch / "source", scratch)
            check_contents(sdist, wheel, direct)
            version = check_installed(wheel, scratch)
        except PackageError as error:
            sys.exit(f"error: {error}")
        print(f"{version}: {sdist.name} {sdist.stat().st_size:,} bytes, {wheel.name} {wheel.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
