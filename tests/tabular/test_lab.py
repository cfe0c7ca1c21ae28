import json

import numpy as np
import pytest

from trpo_tf.cli import main as cli
from trpo_tf.errors import UserError
from trpo_tf.tabular import lab
from trpo_tf.tabular.lab import ALGORITHMS, Algorithm, Move, laboratory, run
from trpo_tf.tabular.mdps import NAMED, two_state
from trpo_tf.tabular.report import draw, table

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def results():
    return list(laboratory(["chain", "two-state"], ["cpi", "mm", "npg"], 12))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_improves_and_stays_above_its_bound(algorithm):
    history = run(two_state(), algorithm, 15)
    assert len(history.eta) == 16
    assert len(history.lower_bound) == len(history.max_kl) == 15
    assert history.eta[0] < history.eta[-1] <= history.optimum + 1e-12
    assert history.largest_fall <= 1e-12
    assert history.least_slack >= -1e-12
    assert history.monotone == (algorithm in ("cpi", "mm"))


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("algorithm", ["cpi", "mm"])
def test_what_claims_to_be_monotone_is_so_on_every_named_mdp(name, algorithm):
    history = run(NAMED[name](), algorithm, 150)
    assert min(np.diff(history.eta)) >= -1e-12
    assert min(np.subtract(history.eta[1:], history.lower_bound)) >= -1e-12


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (Move(np.array([[0.0, 1.0], [0.0, 1.0]]), -np.inf), "bad: eta is .*, below what is guaranteed by"),
        (Move(np.full((2, 2), 0.5), 100.0), "bad: eta is .*, below what is guaranteed by"),
    ],
)
def test_a_broken_guarantee_is_an_error(monkeypatch, move, message):
    """A fall of what claims to be monotone, and a bound that does not hold."""
    monkeypatch.setitem(ALGORITHMS, "bad", Algorithm(lambda: lambda mdp, old, pi: move, True))
    with pytest.raises(RuntimeError, match=message):
        run(two_state(), "bad", 1)


def test_a_fall_is_recorded_where_none_is_excluded(monkeypatch):
    leave = Move(np.array([[0.0, 1.0], [0.0, 1.0]]), -np.inf)
    monkeypatch.setitem(lab.ALGORITHMS, "leave", Algorithm(lambda: lambda mdp, old, pi: leave, False))
    history = run(two_state(), "leave", 1)
    assert history.largest_fall == pytest.approx(history.eta[0])
    assert "fell by up to 7.3e+00" in table([history])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["chain", "maze"], ["cpi"], 5), "mdp 'maze' is unknown; choose from chain, gridworld, two-state, garnet"),
        ((["chain"], ["cpi", "sarsa"], 5), "algo 'sarsa' is unknown; choose from cpi, mm, pg, npg, npg-kl, trpo"),
        ((["chain"], ["cpi"], 0), "iterations must be at least 1, not 0"),
    ],
)
def test_wrong_use_is_told_before_anything_runs(arguments, message):
    with pytest.raises(UserError, match=message):
        laboratory(*arguments)


def test_the_table_shows_eta_beside_its_bound(results):
    lines = table(results[0]).splitlines()
    assert lines[0] == "chain: the best policy has eta = 4.8137"
    assert lines[2].split() == ["iteration", *["eta", "bound"] * 3]
    assert [line.split()[0] for line in lines[3:9]] == ["0", "1", "2", "5", "10", "12"]
    first = results[0][0]
    assert lines[8].split()[1:3] == [f"{first.eta[12]:.4f}", f"{first.lower_bound[11]:.4f}"]
    assert lines[9].startswith("  cpi     never fell (guaranteed); at least ")
    assert lines[11].startswith("  npg     never fell; at least ")


def test_the_figure_is_a_png(results, tmp_path):
    draw(results, tmp_path / "lab.png")
    assert (tmp_path / "lab.png").read_bytes().startswith(PNG)


def test_the_command_prints_its_tables_and_draws(tmp_path, capsys):
    cli.main(
        ["lab", "--mdp", "chain", "two-state", "--algo", "cpi", "mm", "--iterations", "3", "--out", str(tmp_path / "a")]
    )
    printed = capsys.readouterr().out
    assert printed.count("never fell (guaranteed)") == 4
    assert printed.splitlines()[-1] == f"drawn in {tmp_path / 'a' / 'lab.png'}"
    assert (tmp_path / "a" / "lab.png").read_bytes().startswith(PNG)


def test_the_command_prints_json(tmp_path, capsys):
    cli.main(["lab", "--mdp", "chain", "--algo", "npg", "--iterations", "3", "--out", str(tmp_path), "--json"])
    (history,) = json.loads(capsys.readouterr().out)["histories"]
    assert (history["mdp"], history["algorithm"], len(history["lower_bound"])) == ("chain", "npg", 3)


@pytest.mark.parametrize("arguments", [["--mdp", "maze"], ["--algo", "sarsa"], ["--iterations", "0"]])
def test_the_command_answers_wrong_use_with_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["lab", *arguments])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_histories_are_json(results):
    stored = json.loads(json.dumps(results[0][0].to_dict()))
    assert stored["mdp"] == "chain"
    assert stored["algorithm"] == "cpi"
    assert len(stored["eta"]) == 13
    assert stored["largest_fall"] == 0
