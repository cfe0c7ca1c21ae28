"""Create and resume Optuna's study of a search, and end its trials whose process has ended."""

import contextlib
import importlib.util
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.search.space import Space, present_values
from trpo_tf.serving.errors import install

if TYPE_CHECKING:
    import optuna

PROCESS = "process"
"""Attribute of a trial: the host and the process that run it."""

JOB = "job"
"""Attribute of a trial: the job that it is, also where a Ray cluster runs it."""

_DEFINITION = "definition"


@dataclass(frozen=True)
class Search:
    """Settings that all trials of a study share.

    Attributes:
        config: the settings that trials start from.
        space: what they may change.
        storage: Optuna's storage: a URL of a database, or the path of a journal file.
        study: the study's name.
        seeds: seeds of each trial's runs.
    """

    config: Config
    space: Space
    storage: str
    study: str
    seeds: range

    def to_json(self) -> str:
        """Return the search as text, for another process and for the study."""
        return json.dumps(
            {
                "config": self.config.to_dict(),
                "space": self.space,
                "storage": self.storage,
                "study": self.study,
                "seeds": [self.seeds.start, self.seeds.stop],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Search":
        """Return the search that `to_json` has written."""
        values = json.loads(text)
        return cls(**values | {"config": Config.from_dict(values["config"]), "seeds": range(*values["seeds"])})


def require_optuna() -> None:
    """Raise `UserError` if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"a search needs Optuna; install it with: {install('search')}")


def open_study(search: Search, seed: int = 0, *, new: bool = True) -> "optuna.Study":
    """Return the study, with `new` a new one if its storage has none of this name; `seed` is that of the sampler.

    A new study begins with the values of the config, where the space has them. Raises `UserError` for a storage that
    can't be opened, or lacks the study, or whose study of this name has another space or other settings.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _readable(search.storage):
        storage = _storage(search.storage)
        if new:
            optuna.create_study(study_name=search.study, storage=storage, direction="maximize", load_if_exists=True)
        study = optuna.load_study(
            study_name=search.study,
            storage=storage,
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.PercentilePruner(50.0, n_startup_trials=4),
        )
        definition = {name: value for name, value in json.loads(search.to_json()).items() if name != "storage"}
        known = study.user_attrs.get(_DEFINITION)
        if known is None:
            study.set_user_attr(_DEFINITION, definition)
            study.enqueue_trial(present_values(search.space, search.config), skip_if_exists=True)
        elif known != definition:
            changed = ", ".join(name for name in definition if known.get(name) != definition[name])
            raise UserError(
                f"the study {search.study} in {search.storage} has other {changed}; name another --study, or --storage"
            )
    return study


def fail_abandoned(study: "optuna.Study", job: str | None = None) -> None:
    """Mark running trials as failed if they are of this job, or their process on this machine has ended."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        host, process = trial.user_attrs.get(PROCESS, (None, None))
        gone = host == platform.node() and not _is_running(process)
        if gone or (job is not None and trial.user_attrs.get(JOB) == job):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def this_process() -> list[Any]:
    """Return the value of the attribute `PROCESS` of trials that this process runs."""
    return [platform.node(), os.getpid()]


def _storage(text: str) -> "optuna.storages.BaseStorage | str":
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    if "://" in text:
        return text
    Path(text).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(text))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _readable(storage: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        here = platform.node()
        raise UserError(
            f"the storage {storage} does not have the study, as the machine {here} sees it; give one that all reach"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the storage {storage} can't be used: {reason}") from error
