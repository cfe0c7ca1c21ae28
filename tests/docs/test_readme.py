"""The README's example, run as a reader would; links and pages of the documentation."""

import re
import runpy

import pytest

from tests.support.paths import ROOT
from tests.support.processes import command_line
from trpo_tf.config.algorithms import ALGORITHMS

README = ROOT / "README.md"
DOCS = ROOT / "docs"
FOLDERS = ("docs", "research", "trpo_tf", "export", "serving", "benchmarks", "tests", "deploy", "examples", ".ci")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(page for name in FOLDERS if name != "tests" for page in (ROOT / name).rglob("*.md")),
]


def test_the_python_example_trains_exports_and_acts(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 20
    done = command_line.run(tmp_path, code=code)
    assert done.returncode == 0, done.stderr
    # An untrained policy lasts for about 20 steps.
    assert float(done.stdout.split()[-1]) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page):
    assert [target for target in _relative_links(page) if not (page.parent / target.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_heading_finds_it(page):
    missing = []
    for target in _relative_links(page):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        if anchor and linked.suffix == ".md" and anchor not in _anchors(linked):
            missing.append(target)
    assert missing == []


def test_every_file_that_is_named_exists():
    """In docs, docstrings, messages and scripts: an answer to "where is this said" must not lead nowhere."""
    kinds = r"(?:md|py|json|sh|ya?ml|svg|png|csv|toml)"
    named = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS[:-1])})/[\w./-]*\.{kinds}\b")
    module = re.compile(r"python3? -m (benchmarks(?:\.\w+)+)")
    missing = []
    for source in _sources():
        text = source.read_text()
        paths = {*named.findall(text), *(f"{name.replace('.', '/')}.py" for name in module.findall(text))}
        missing += [(str(source.relative_to(ROOT)), path) for path in sorted(paths) if not (ROOT / path).exists()]
    assert [(source, path) for source, path in missing if not path.endswith("/NAME.md")] == []


def _sources():
    """Text files in which a reader may find the name of a file; not the diary of what there once was."""
    kinds = (".md", ".py", ".toml", ".sh", ".yaml", ".yml", "", ".js", ".html")
    top = [path for path in ROOT.iterdir() if path.is_file()]
    inside = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
    for path in sorted({*top, *inside}):
        is_history = path.name == "CHANGELOG.md" or "notebook" in path.parts
        if path.suffix in kinds and path.is_file() and not is_history:
            yield path


def test_the_page_of_options_is_that_of_the_code():
    written = runpy.run_path(str(DOCS / "reference" / "make_options.py"))
    assert (DOCS / "reference" / "options.md").read_text() == written["page"](), "run: make docs"


def test_every_equation_that_is_cited_is_on_the_page_of_equations():
    page = (DOCS / "explanation" / "equations.md").read_text()
    there = _numbers(" ".join(re.findall(r"\*\*(Equations? [^*]*?)\.?\*\*", page)))
    sources = [
        *(ROOT / "trpo_tf").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *(DOCS / "explanation").rglob("*.md"),
    ]
    cited = set().union(*(_numbers(source.read_text()) for source in sources))
    assert len(cited) > 50
    assert cited - there == set()


def _numbers(text):
    """Of equations that a text names: 31, N12, or all from 31 to 33."""
    found = set()
    for named in re.findall(r"\b[Ee]quations? ([A-Z]?\d+(?:(?:, | and | to )[A-Z]?\d+)*)", " ".join(text.split())):
        for part in re.split(r", | and ", named):
            first, _, last = part.partition(" to ")
            letter = first.rstrip("0123456789")
            numbers = range(int(first.lstrip(letter)), int((last or first).lstrip(letter)) + 1)
            found |= {f"{letter}{number}" for number in numbers}
    return found


def test_the_readme_does_not_send_a_reader_to_the_notebook():
    assert "research/" not in README.read_text()


def _relative_links(page):
    targets = re.findall(r"\]\(([^()\s]+)\)", page.read_text())
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def _anchors(page):
    """As GitHub makes them: lower case, hyphens for blanks, no other punctuation."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_a_page(name):
    page = DOCS / "explanation" / "algorithms" / f"{name}.md"
    assert page.read_text().startswith(f"# {name}: ")
    assert f"](algorithms/{name}.md)" in (DOCS / "explanation" / "algorithms.md").read_text()


def test_nothing_says_to_install_a_name_that_no_index_has():
    """Whoever registers it there would be installed; `pip install '.[extra]'` works in a checkout."""
    rooms = ("trpo_tf", "export", "serving", "examples")
    files = [*PAGES, *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        for line in path.read_text().splitlines()
        if re.search(r"pip3? install(?: -\S+)* ['\"]?trpo[-_]tf|trpo[-_]tf\[", line)
    ]
    assert wrong == []
