"""How environments are named: one table per family file, entered into Gymnasium's registry as `hyperrl/<id>`.

In the registry, an id's entry points are the Gymnasium classes of `hyperrl.envs.gymnasium_export`, and `meta_env` among
its arguments is the path of the `MetaEnv` class: `gymnasium.make`, `gymnasium.make_vec` and `make_env` all take it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import gymnasium
import torch
from gymnasium.envs.registration import load_env_creator

from hyperrl.envs.base import MetaEnv
from hyperrl.envs.layout import MetaEnvOptions

NAMESPACE = "hyperrl"
PLAYERS = ("random", "within_episode_memory", "bayes_optimal", "task_known")  # no later one earns less
_EXPORT = "hyperrl.envs.gymnasium_export"
_CLASS = "meta_env"  # the argument of both classes there


@dataclass(frozen=True)
class EnvEntry:
    """One environment id.

    Attributes:
        id: the id without namespace.
        entry_point: class as `module:Name`.
        description: one line for `hyperrl list envs`.
        kwargs: constructor arguments.
        landmarks: known mean returns of a whole meta-episode (undiscounted, raw units) with the arguments above, by
            the name of the player (`spec/results.md` section 2).
    """

    id: str
    entry_point: str
    description: str
    kwargs: Mapping[str, Any]
    landmarks: Mapping[str, float] = field(default_factory=dict)


def known_landmarks(*returns: float | None) -> dict[str, float]:
    """Name mean returns of the players in `PLAYERS`, in this order; None where one is not known."""
    return {player: value for player, value in zip(PLAYERS, returns, strict=False) if value is not None}


def register_family(entries: Iterable[EnvEntry], namespace: str = NAMESPACE) -> None:
    """Enter a table into Gymnasium's registry, where `make_env`, `gymnasium.make` and `gymnasium.make_vec` find it.

    Args:
        entries: the table; called `ENVS` in its module, it is also where `description` and `landmarks` look.
        namespace: what is before the slash; an id of `own_module` is then known as `own_module:namespace/Id-v0`.
    """
    for entry in entries:
        name = f"{namespace}/{entry.id}"
        if name not in gymnasium.registry:  # a reloaded module registers once
            gymnasium.register(
                id=name,
                entry_point=f"{_EXPORT}:MetaEpisodeEnv",
                vector_entry_point=f"{_EXPORT}:MetaEpisodeVectorEnv",
                kwargs={_CLASS: entry.entry_point, **entry.kwargs},
            )


def env_ids() -> list[str]:
    """List our ids, without namespace, in the order of their tables.

    Example:
        >>> env_ids()[0]
        'GridNavi-v0'
    """
    prefix = f"{NAMESPACE}/"
    return [id.removeprefix(prefix) for id in gymnasium.registry if id.startswith(prefix)]


def make_env(
    id: str,
    num_envs: int,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    publish: Sequence[str] = (),
    **options: Any,
) -> MetaEnv:
    """Build a batch of environments from an id.

    Args:
        id: `GridNavi-v0`, `hyperrl/GridNavi-v0`, or `module:Id-v0` for an environment that `module` registers.
        num_envs: number of environments.
        seed: seed of the environment's own generator.
        device: where the environments live.
        publish: what to publish besides the observation, see `MetaEnv`.
        **options: arguments of the environment class; they win over the registered ones.

    Returns:
        The environments, not yet reset.

    Raises:
        ValueError: if the id or an option is unknown (the message names the nearest valid one), or an option's value
            is out of range.

    Example:
        >>> env = make_env("GridNavi-v0", 16, seed=3, episodes_per_task=2)
        >>> env.rollout(5)["observation"].shape
        torch.Size([16, 5, 3])
    """
    entry_point, registered = _find(id)
    try:
        env_class = load_class(entry_point)
    except ValueError as error:
        raise ValueError(f"environment {id!r} is not a MetaEnv: expected one out of {', '.join(env_ids())}") from error
    return build_env(env_class, num_envs, **{**registered, **options}, seed=seed, device=device, publish=publish)


def load_class(path: Any) -> type[MetaEnv]:
    """Return the `MetaEnv` class behind `module:Name`, or a class itself.

    Raises:
        ValueError: if it is none.
    """
    env_class = load_env_creator(path) if isinstance(path, str) else path
    if not (inspect.isclass(env_class) and issubclass(env_class, MetaEnv)):
        raise ValueError(f"{path!r} is not a MetaEnv: expected a class, or its path `module:Name`")
    return env_class


def build_env(env_class: type[MetaEnv], num_envs: int, **options: Any) -> MetaEnv:
    """Build a batch of environments from a class.

    Raises:
        ValueError: if an option is unknown (the message names the nearest valid one), or its value is out of range.
    """
    valid = _option_names(env_class)
    for option in options:
        if option not in valid:
            raise ValueError(f"unknown option {option!r} of {env_class.__name__}: {_nearest(option, valid)}")
    return env_class(num_envs, **options)


def landmarks(id: str) -> dict[str, float]:
    """Known mean returns of a meta-episode by the name of the player; empty if none are known.

    They hold for the registered arguments. Names: `random`, `within_episode_memory` (the best without memory across
    episodes), `bayes_optimal`, `task_known` (no mean can exceed it).

    Raises:
        ValueError: if the id is unknown.

    Example:
        >>> landmarks("GridNavi-v0")["task_known"]
        44.2857
    """
    entry = _entry(id)
    return {} if entry is None else dict(entry.landmarks)


def description(id: str) -> str:
    """One line about an environment; empty if its family has no table.

    Raises:
        ValueError: if the id is unknown.
    """
    entry = _entry(id)
    return "" if entry is None else entry.description


def _entry(id: str) -> EnvEntry | None:
    """Find the line about an id in a table `ENVS`: of the module in the id, or of that of the environment's class."""
    entry_point, _ = _find(id)
    module, _, name = id.rpartition(":")
    modules = [*([module] if module else []), load_class(entry_point).__module__]
    entries = (entry for module in modules for entry in getattr(sys.modules[module], "ENVS", ()))
    return next((entry for entry in entries if entry.id == name.rpartition("/")[2]), None)


def _find(id: str) -> tuple[Any, dict[str, Any]]:
    """Return the class behind an id, or its path, and its registered arguments."""
    module, _, name = id.rpartition(":")
    if module:
        _import(module, id)
    spec = gymnasium.registry.get(name if module or "/" in name else f"{NAMESPACE}/{name}")
    if spec is None or spec.entry_point is None:
        raise ValueError(f"unknown environment id {id!r}: {_nearest(name.rpartition('/')[2], env_ids())}")
    # A `MetaEnv` class may also be registered as it is; then only `make_env` can build it.
    registered = dict(spec.kwargs)
    return registered.pop(_CLASS, spec.entry_point), registered


def _import(module: str, id: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise ValueError(f"environment id {id!r} names module {module!r}: expected an importable module") from error


def _option_names(env_class: type[MetaEnv]) -> list[str]:
    """Names of all arguments but the number of environments, those handed on to base classes included."""
    names: list[str] = []
    for ancestor in env_class.__mro__[: env_class.__mro__.index(MetaEnv)]:
        parameters = inspect.signature(ancestor.__init__).parameters
        names += [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in names if name not in ("self", "num_envs")] + list(MetaEnvOptions.__annotations__)


def _nearest(name: str, valid: Sequence[str]) -> str:
    return f"the nearest valid name is {get_close_matches(name, valid, n=1, cutoff=0.0)[0]!r}"
