"""Say why an environment's id is not known to Gymnasium, and what to do."""

import difflib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym

from trpo_tf.errors import is_installed
from trpo_tf.support.shell import option

_MOST_NAMES = 3


def why_not_registered(env_id: str, error: gym.error.UnregisteredEnv) -> str:
    """Return Gymnasium's `error` about an id, and what to do about it; the id's module is imported."""
    said = " ".join(str(error).split())
    if isinstance(error, gym.error.VersionNotFound):
        return said  # it names the versions that there are
    reason = said.partition(" Did you mean")[0] if ":" in env_id else said
    return f"{reason.rstrip('.?')}; {_advice(env_id)}"


def _advice(env_id: str) -> str:
    module, _, name = env_id.rpartition(":")
    if not module:
        former = name.partition("-")[0]
        game = former.removesuffix("NoFrameskip").removesuffix("Deterministic")
        if game != former:
            return f"Gymnasium's Atari games are called ALE/{game}-v5 and so on"
        return f"if a package or a module of yours registers it, name that in front: module:{name}"
    imported, own = getattr(sys.modules.get(module), "__file__", None), _own_file(module)
    if own is not None and imported is not None and Path(imported).resolve() != own:
        return f"{module} is {imported}, not {own}: give yours another name"
    if registered := list(_registered_by(module)):
        more = ", ..." if len(registered) > _MOST_NAMES else ""
        return f"{module} registers {', '.join(difflib.get_close_matches(name, registered, _MOST_NAMES, 0.0))}{more}"
    unversioned = re.sub(r"-v\d+$", "", name)
    made = unversioned if hasattr(sys.modules.get(module), unversioned) else "CLASS"
    where = "a module of yours" if imported is not None and is_installed(imported) else module
    versioned = name if name != unversioned else f"{name}-v0"
    return f"{module} registers none; let {where} call gymnasium.register({versioned!r}, {made})"


def of_former_gym(env_id: str) -> str:
    """Return what to do about an id that is registered with the package `gym`; nothing for any other."""
    name, former = env_id.rpartition(":")[2], sys.modules.get("gym.envs.registration")
    registry = getattr(former, "registry", {})
    if name in gym.registry or name not in getattr(registry, "env_specs", registry):
        return ""
    given = json.dumps({"env_id": env_id})
    return (
        "it is registered with the package gym, which Gymnasium replaces; look for a newer version of its package, "
        f"or adapt it: pip install 'shimmy[gym-v26]', and train shimmy:GymV26Environment-v0 "
        f"{option('env_kwargs', given)}"
    )


def _own_file(module: str) -> Path | None:
    """Return the file of the module in the working directory, if there is one."""
    beginning = Path.cwd().joinpath(*module.split("."))
    found = (file for file in (beginning.with_suffix(".py"), beginning / "__init__.py") if file.is_file())
    return next(found, None)


def _registered_by(module: str) -> Iterator[str]:
    """Return the ids whose environments are defined in a module or a package."""
    for env_id, spec in gym.registry.items():
        entry_point = spec.entry_point
        made_in = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
        if made_in == module or made_in.startswith((f"{module}.", f"{module}:")):
            yield env_id
