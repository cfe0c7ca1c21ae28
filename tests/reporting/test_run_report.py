"""A run's report: what it says is what the run logged, and it needs nothing beside it."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from trpo_tf.cli import main as cli
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.reporting.charts import line_chart, share_bar
from trpo_tf.reporting.run_report import html_report, read_story
from trpo_tf.runs.folder import load_run
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.support.phase_timer import PHASES


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of a run, alone in its folder, that knows of no bundle."""
    ignored = shutil.ignore_patterns("bundles.json")
    return shutil.copytree(trained.run.folder, tmp_path / "alone" / "run", ignore=ignored)


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.open, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_report_tells_what_was_logged(folder, bundle):
    text = html_report(read_story(folder, bundle))
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    assert f"<b>{summary['trained']['mean_return']:,.1f}</b>" in text
    assert f"<b>{summary['untrained']['mean_return']:,.1f}</b>" in text
    assert f"<b>{logged[-1]['steps']:,}</b>" in text
    assert "It is trained." in text
    for title in ("Return", "Mean KL", "Entropy", "Explained variance", "Line-search steps", "Steps a second"):
        assert f"<figcaption>{title}" in text
    for name in PHASES:
        mean = sum(entry[f"seconds_{name}"] for entry in logged[2:]) / len(logged[2:])
        assert f"<dd>{1000 * mean:,.1f} ms, " in text
    manifest = read_manifest(bundle)
    assert manifest.files["policy.onnx"].sha256 in text
    assert all(f"<td>{target}</td>" in text for target in manifest.parity)
    assert "Box(-100.0, 100.0, (2,), float32)" in text
    assert summary["versions"]["tensorflow"] in text


def test_it_is_one_whole_file_without_any_address(folder, bundle):
    text = html_report(read_story(folder, bundle))
    tags = Tags(text)
    assert tags.addresses == []
    assert tags.open == []
    assert not re.search(r"https?://|url\(|@import|<script", text)


def test_a_run_that_goes_on_has_a_report(folder):
    (folder / "summary.json").write_text(
        json.dumps({"untrained": {"mean_return": 0.5, "std_return": 1, "episodes": 2}})
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:4], lines[4][:40]]))
    steps = json.loads(lines[3])["steps"]
    text = html_report(read_story(folder))
    assert f"It goes on, or was stopped, at {steps:,} steps." in text
    assert "No bundle of this run was found" in text
    assert "return trained" not in text
    (folder / "metrics.jsonl").unlink()
    (folder / "summary.json").unlink()
    assert "No iteration is done yet." in html_report(read_story(folder))


def test_a_bundle_beside_the_run_is_found_if_it_is_the_run_s(folder, bundle):
    shutil.copytree(bundle, folder.parent / "mine")
    assert read_story(folder).bundle == folder.parent / "mine"
    other = json.loads((folder.parent / "mine" / "manifest.json").read_text())
    other["provenance"]["config"]["seed"] = 99
    (folder.parent / "mine" / "manifest.json").write_text(json.dumps(other))
    assert read_story(folder).bundle is None


def test_a_bundle_exported_elsewhere_is_found(folder, tmp_path):
    assert read_story(folder).bundle is None
    export_run(load_run(folder), tmp_path / "far" / "away", targets=["onnx"], episodes=1)
    assert read_story(folder).bundle == tmp_path / "far" / "away"


def test_the_command_writes_it(folder, capsys):
    cli.main(["report", str(folder)])
    assert capsys.readouterr().out == f"report written to {folder / 'report.html'}\n"
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(folder.parent)])
    assert ended.value.code == 2
    assert "is not a run folder" in capsys.readouterr().err


def points(chart: str, kind: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(rf'<polyline class="{kind}" points="([^"]*)"', chart)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_a_curve_goes_where_its_values_are():
    chart = line_chart("<Up>", [10, 20, 30, 40], [1.0, None, 3.0, 5.0], limit=[5.0] * 4)
    first, second = points(chart, "line")
    assert len(first) == 1
    assert second[0][1] > second[1][1]  # upwards
    assert (first[0][1] - second[0][1]) == pytest.approx(second[0][1] - second[1][1], abs=0.11)
    (limit,) = points(chart, "limit")
    assert {y for _, y in limit} == {second[1][1]}
    assert "&lt;Up&gt; <small>5 at last" in chart
    assert "nothing yet" in line_chart("None", [1], [None])
    assert points(line_chart("Flat", [1, 2], [0.0, 0.0]), "line")


def test_powers_of_ten_are_even_and_many_points_are_thinned():
    chart = line_chart("Residual", [1, 2, 3], [1e-6, 1e-4, 1e-2], log=True)
    ((a, b, c),) = points(chart, "line")
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.11)
    assert "1e-06" in chart
    assert points(line_chart("Zero", [1, 2], [0.0, 1.0], log=True), "line")[0][0][0] > 300
    (thin,) = points(line_chart("Long", range(10_000), [float(n) for n in range(10_000)]), "line")
    assert 100 < len(thin) <= 240


def test_shares_add_up():
    bar = share_bar(dict(zip(PHASES, [1, 1, 2, 2, 3, 1], strict=True)))
    assert sum(map(float, re.findall(r"width: ([\d.]+)%", bar))) == pytest.approx(100)
    assert "<dd>3,000.0 ms, 30.0 %</dd>" in bar
