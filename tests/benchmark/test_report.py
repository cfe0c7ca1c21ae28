"""Summaries, tables, figure and page of a benchmark, from results made up."""

import csv
import io
import json
from html.parser import HTMLParser

import pytest
from made_up import PEER, RESULTS, result

from trpo_tf.benchmark.figures import draw
from trpo_tf.benchmark.report import html_report
from trpo_tf.benchmark.summary import common_curve, mean_improvement, summarize
from trpo_tf.benchmark.tables import results_csv, results_json, terminal_table

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Collects the rows of tables, texts and addresses of a page, and checks that every element is closed."""

    NEVER_CLOSED = ("meta", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows, self.addresses, self.open, self.details = [], [], [], 0
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        self.details += tag == "details"
        if tag not in self.NEVER_CLOSED:
            self.open.append(tag)
        if tag == "tr" and "tbody" in self.open:
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "tbody" in self.open:
            self.rows[-1].append(data)


@pytest.fixture(scope="module")
def summaries():
    return summarize(RESULTS, PEER)


def test_a_summary_an_environment(summaries):
    left, right = summaries
    assert (left.environment, right.environment) == ("Left-v0", "Right-v0")
    assert left.scores == (10.0, 20.0, 60.0)
    assert (left.mean, left.iqm.value, left.total_steps) == (30.0, 30.0, 10_000)
    assert left.peer.scores == (15.0, 20.0)
    assert left.peer.mean == 17.5
    assert left.peer.improvement.value == pytest.approx((0 + 0 + 1 + 0.5 + 1 + 1) / 6)
    assert right.scores == (-5.0,)
    assert mean_improvement(summaries) == left.peer.improvement.value


def test_a_peer_s_runs_of_another_length_are_not_compared_with(summaries):
    assert summaries[1].peer is None
    assert mean_improvement(summaries[1:]) is None


def test_curves_are_compared_where_all_seeds_have_one():
    curves = [((0, 0.0), (100, 10.0)), ((50, 1.0), (150, 1.0))]
    steps, returns = common_curve([result("A-v0", seed, 0.0, curve) for seed, curve in enumerate(curves)])
    assert (steps[0], steps[-1]) == (50, 100)
    assert returns.value[0] == pytest.approx((5.0 + 1.0) / 2)
    assert returns.value[-1] == pytest.approx((10.0 + 1.0) / 2)
    assert returns.low[-1] == pytest.approx(1.0)
    assert common_curve([result("A-v0", 0, 0.0, curve=())]) is None
    assert common_curve([result("A-v0", 0, 0.0, curve=((5, 1.0),))]) is None


def test_the_page_has_a_row_an_environment_and_needs_nothing_beside_it(summaries):
    figure = draw(summaries, RESULTS, "a peer", "svg")
    text = html_report(summaries, RESULTS, ["Up-v0 failed: <no> & never"], "a peer", figure)
    page = Page(text)
    assert [row[0] for row in page.rows] == ["Left-v0", "Right-v0"]
    assert page.rows[0][5:7] == ["30.0", "10.0 to 60.0"]
    assert page.rows[1][-4:] == ["-"] * 4
    assert page.details == len(RESULTS)
    (address,) = page.addresses
    assert address.startswith("data:image/svg+xml;base64,")
    assert "Up-v0 failed: &lt;no&gt; &amp; never" in text
    assert "Abacus &lt;1&gt;" in text


def test_the_page_without_a_peer_has_no_columns_for_one(summaries):
    alone = summarize(RESULTS, [])
    page = Page(html_report(alone, RESULTS, [], None, draw(alone, RESULTS, None, "svg")))
    assert len({len(row) for row in page.rows}) == 1
    assert page.rows[0][-2:] == ["30.0", "10.0 to 60.0"]


def test_the_figure_is_the_same_each_time(summaries):
    assert draw(summaries, RESULTS, "a peer", "png").startswith(PNG)
    assert draw(summaries, RESULTS, "a peer", "svg") == draw(summaries, RESULTS, "a peer", "svg")


def test_files_hold_every_run(summaries):
    rows = list(csv.DictReader(io.StringIO(results_csv(RESULTS))))
    assert [(row["environment"], row["seed"], float(row["mean_return"])) for row in rows] == [
        ("Left-v0", "0", 10.0),
        ("Left-v0", "1", 20.0),
        ("Left-v0", "2", 60.0),
        ("Right-v0", "0", -5.0),
    ]
    everything = json.loads(results_json(RESULTS, summaries, "a peer"))
    assert [run["config"]["seed"] for run in everything["runs"]] == [0, 1, 2, 0]
    assert [summary["environment"] for summary in everything["environments"]] == ["Left-v0", "Right-v0"]
    assert everything["environments"][0]["iqm"] == [30.0, 10.0, 60.0]


def test_the_terminal_s_table(summaries):
    lines = terminal_table(summaries, "a peer").splitlines()
    assert " ".join(lines[0].split()) == "environment seeds mean IQM and 95% interval a peer, IQM improvement"
    assert lines[1].split()[:6] == ["Left-v0", "3", "30.0", "30.0", "[10.0,", "60.0]"]
    assert lines[2].split() == ["Right-v0", "1", "-5.0", "-5.0", "[-5.0,", "-5.0]"]
