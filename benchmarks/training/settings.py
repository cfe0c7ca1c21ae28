"""Change settings of a config by dotted names, for scripts that try one value after another."""

import dataclasses
from typing import Any

from trpo_tf.config.settings import Config


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """Return `config` with dotted settings changed."""
    for name, value in settings.items():
        component, _, field = name.rpartition(".")
        if component:
            value = dataclasses.replace(getattr(config, component), **{field: value})
        config = dataclasses.replace(config, **{component or field: value})
    return config
