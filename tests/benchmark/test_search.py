"""The search script begins with the preset, whatever that has."""

import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from trpo_tf.config.settings import load_preset, preset_names

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from search import settings_of, suggest
from settings import with_settings


@pytest.mark.parametrize("name", preset_names())
def test_the_first_trial_is_the_preset(tmp_path, name):
    start = load_preset(name, name)
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(tmp_path / "log"))))
    study.enqueue_trial(settings_of(start))
    chosen = suggest(study.ask(), settings_of(start))
    assert with_settings(start, chosen) == start
    chosen_next = suggest(study.ask(), settings_of(start))
    assert chosen_next.keys() == chosen.keys()
