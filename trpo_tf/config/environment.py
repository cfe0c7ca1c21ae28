"""Describe an environment: its id, constructor arguments, time limit, wrappers and options."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trpo_tf.config.reset_options import check_schedule
from trpo_tf.errors import UserError

ACTION_MASKS = ("auto", "info", "method", "off")

_WRAPPER = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)\s*(\{.*\})?", re.DOTALL)


@dataclass(frozen=True)
class Environment:
    """Description of an environment, from which a run, an evaluation or a video makes it.

    Attributes:
        env_id: Gymnasium's id, or `module:Name-v0` if importing `module` registers it.
        env_kwargs: constructor arguments, a JSON object.
        max_episode_steps: time limit; 0 for the registered one.
        env_wrapper: wrappers, innermost first: `module:Class`, then their arguments as a JSON object, if any.
        reset_options: options of its `reset`, a JSON object; see `trpo_tf.config.reset_options`.
        action_mask: where the mask of legal actions comes from, one of `ACTION_MASKS`.
    """

    env_id: str
    env_kwargs: str = ""
    max_episode_steps: int = 0
    env_wrapper: tuple[str, ...] = ()
    reset_options: str = ""
    action_mask: str = ACTION_MASKS[0]

    @classmethod
    def of(cls, environment: "str | Environment") -> "Environment":
        """Return the environment of an id; an `Environment` is returned as it is."""
        return environment if isinstance(environment, cls) else cls(str(environment))

    @classmethod
    def recorded(cls, provenance: Mapping[str, Any]) -> "Environment | None":
        """Return the environment that a bundle's provenance names, None if it names none.

        If its settings are missing or malformed, return the environment as it is registered.
        """
        config = provenance.get("config")
        config = config if isinstance(config, dict) else {}
        env_id, own = provenance.get("environment") or config.get("env_id"), config.get("environment", {})
        if not isinstance(env_id, str):
            return None
        try:
            wrappers, mask = tuple(own["env_wrapper"]), str(own.get("action_mask", ACTION_MASKS[0]))
            options = str(own.get("reset_options", ""))
            return cls(env_id, own["env_kwargs"], int(own["max_episode_steps"]), wrappers, options, mask)
        except (KeyError, TypeError, ValueError):
            return cls(env_id)

    @property
    def is_registered(self) -> bool:
        """Whether the environment is made exactly as it is registered."""
        return self == Environment(self.env_id)

    @property
    def arguments(self) -> dict[str, Any]:
        """`env_kwargs` as a dict. Raises `UserError` unless it is a JSON object."""
        return _arguments(self.env_kwargs, "env_kwargs")

    @property
    def options(self) -> dict[str, Any]:
        """`reset_options` as a dict. Raises `UserError` unless it is a JSON object of values that can be scheduled."""
        options = _arguments(self.reset_options, "reset_options")
        check_schedule(options)
        return options

    @property
    def wrappers(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Module, class name and arguments of each wrapper. Raises `UserError` for a malformed one."""
        found = []
        for text in self.env_wrapper:
            match = _WRAPPER.fullmatch(text.strip())
            if match is None:
                raise UserError(
                    f"env_wrapper must be module:Class or, with arguments, module:Class{{...}}, not {text!r}"
                )
            found.append((match[1], match[2], _arguments(match[3] or "", "env_wrapper")))
        return found

    def __str__(self) -> str:
        return self.env_id


def as_json(arguments: Any, name: str) -> Any:
    """Return a dict of arguments as JSON (an empty one as an empty text), and anything else unchanged.

    `name` is that of the setting. Raises `UserError` for values that JSON can't represent.
    """
    if not isinstance(arguments, Mapping):
        return arguments
    try:
        return json.dumps(dict(arguments)) if arguments else ""
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be plain values ({error}); or give train a make_env") from error


def _arguments(text: str, name: str) -> dict[str, Any]:
    try:
        values = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(
            f"{name} has arguments that are not JSON ({error}); for example '{{\"difficulty\": 2}}'"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{name} has arguments that are no JSON object, as '{{\"difficulty\": 2}}' is: {text}")
    return values
