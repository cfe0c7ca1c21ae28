"""The search script begins with the preset, whatever that has."""

import importlib

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from tests.support.paths import ROOT
from trpo_tf.config.settings import load_preset, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_the_first_trial_is_the_preset(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # where the script finds its neighbours
    search = importlib.import_module("search")
    start = load_preset(name, name)
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(tmp_path / "log"))))
    study.enqueue_trial(search.settings_of(start))
    chosen = search.suggest(study.ask(), search.settings_of(start))
    assert search.with_settings(start, chosen) == start
    chosen_next = search.suggest(study.ask(), search.settings_of(start))
    assert chosen_next.keys() == chosen.keys()
