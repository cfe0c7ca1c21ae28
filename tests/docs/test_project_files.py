"""What the files about the project say is so: version, licence, commands."""

import re
import subprocess
import sys
import tomllib

import yaml

from tests.support.paths import ROOT
from trpo_tf import serving

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_names_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == serving.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert f"Copyright 2026 {PROJECT['authors'][0]['name']}" in text
    assert [int(number) for number in re.findall(r"^   (\d)\. [A-Z]", text, re.MULTILINE)] == list(range(1, 10))


def test_the_python_versions_are_those_that_are_asked_for():
    listed = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
    lowest, highest = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert listed == [f"3.{minor}" for minor in range(int(lowest), int(highest))]


def test_the_changelog_knows_the_version():
    sections = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] in ("Unreleased", serving.__version__)
    assert serving.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_targets_of_make_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", makefile, re.MULTILINE))
    known = {word for line in targets for word in line.split()}
    pages = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", ".ci/run")]
    named = {
        word
        for page in pages
        for words in re.findall(r"(?:^|[`\s])make ((?:[a-z-]+ ?)+)(?:`|$)", page, re.MULTILINE)
        for word in words.split()
    }
    assert {"test", "lint", "package-test"} <= named
    assert named <= known


def test_the_module_is_the_program():
    module = subprocess.run([sys.executable, "-m", "trpo_tf", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == f"trpo-tf {serving.__version__}\n"
