"""Summaries, tables, figure and page of a benchmark, from results made up."""

import csv
import dataclasses
import html
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.support.made_up import PEER, RESULTS, peer_run, result
from trpo_tf.benchmark.scores.figures import draw
from trpo_tf.benchmark.scores.report import html_report
from trpo_tf.benchmark.scores.summary import common_curve, overall_improvement, shortfalls, summarize
from trpo_tf.benchmark.scores.tables import results_csv, results_json, terminal_table

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
    assert left.spread == pytest.approx(np.std([10, 20, 60], ddof=1))
    assert (right.spread, right.untrained) == (0.0, None)
    assert overall_improvement(summaries) == left.peer.improvement


def test_a_peer_s_runs_of_another_length_are_not_compared_with(summaries):
    assert summaries[1].peer is None
    assert overall_improvement(summaries[1:]) is None


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
    assert page.rows[0][4:8] == ["-", "30.0", "10.0 to 60.0", "26.5"]
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
    assert page.rows[0][-3:] == ["30.0", "10.0 to 60.0", "26.5"]


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
    assert " ".join(lines[0].split()) == "environment seeds untrained IQM spread a peer, IQM spread improvement"
    assert lines[1].split()[:8] == ["Left-v0", "3", "-", "30.0", "26.5", "17.5", "3.5", "0.58"]
    assert lines[2].split() == ["Right-v0", "1", "-", "-5.000", "0.000", "-", "-", "-"]
    assert lines[4].startswith("probability of improvement over a peer, mean of environments: 0.58 [")
    assert len(lines) == 5


def test_where_training_did_harm_or_the_peer_is_far_ahead_is_told():
    def summaries_of(score: float, untrained: float):
        ours = [dataclasses.replace(result("m:A-v0", seed, score), untrained_return=untrained) for seed in range(2)]
        return summarize(ours, [peer_run("m:A-v0", 0, 20.0), peer_run("m:A-v0", 1, 24.0)])

    beaten = "A-v0: 19.1 is below a peer's 22.0 by more than the spread of its seeds, 2.8"
    harmed = "A-v0: 19.1 after training is below 19.2 before"
    assert shortfalls(summaries_of(19.1, 19.0), "a peer") == [beaten]
    assert shortfalls(summaries_of(19.1, 19.2), "a peer") == [harmed, beaten]
    assert shortfalls(summaries_of(19.2, 19.2), "a peer") == []
    assert shortfalls(summaries_of(19.2, np.nextafter(19.2, 20)), "a peer") == []
    text = terminal_table(summaries_of(19.1, 19.2), "a peer")
    assert text.endswith(f"\n{harmed}\n{beaten}")
    page = html_report(summaries_of(19.1, 19.2), [result("m:A-v0", 0, 19.1)], [], "a peer", b"")
    assert html.escape(beaten) in page


def test_runs_of_the_default_settings_are_compared_with_the_peer_s_own_defaults():
    peer = [peer_run("A-v0", 0, 1.0), peer_run("A-v0", 0, 2.0, settings="default")]
    (tuned,) = summarize([result("A-v0", 0, 5.0)], peer)
    (untuned,) = summarize([result("A-v0", 0, 5.0)], peer, {"A-v0"})
    assert (tuned.peer.scores, untuned.peer.scores) == ((1.0,), (2.0,))
