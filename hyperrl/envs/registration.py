"""How environments are named: one table per family file, entered into Gymnasium's registry as `hyperrl/<id>`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import gymnasium
import torch
from gymnasium.envs.registration import load_env_creator

from hyperrl.envs.base import MetaEnv
from hyperrl.envs.layout import MetaEnvOptions

NAMESPACE = "hyperrl"


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


def register_family(entries: Iterable[EnvEntry]) -> None:
    """Enter a family's table into Gymnasium's registry."""
    for entry in entries:
        name = f"{NAMESPACE}/{entry.id}"
        if name not in gymnasium.registry:  # a reloaded module registers once
            gymnasium.register(id=name, entry_point=entry.entry_point, kwargs=dict(entry.kwargs))


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
    creator, kwargs = _find(id)
    if not (inspect.isclass(creator) and issubclass(creator, MetaEnv)):
        raise ValueError(f"environment {id!r} is not a MetaEnv: expected one out of {', '.join(env_ids())}")
    valid = _option_names(creator)
    for option in options:
        if option not in valid:
            raise ValueError(f"unknown option {option!r} of environment {id!r}: {_nearest(option, valid)}")
    env: MetaEnv = creator(num_envs, seed=seed, device=device, publish=publish, **{**kwargs, **options})
    return env


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
    """Find the line about an id in the table `ENVS` of the module that holds the environment's class."""
    creator, _ = _find(id)
    table: Iterable[EnvEntry] = getattr(sys.modules[creator.__module__], "ENVS", ())
    return next((entry for entry in table if entry.id == id.rpartition(":")[2].rpartition("/")[2]), None)


def _find(id: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the class (or function) behind an id and its registered arguments."""
    module, _, name = id.rpartition(":")
    if module:
        _import(module, id)
    spec = gymnasium.registry.get(name if module or "/" in name else f"{NAMESPACE}/{name}")
    if spec is None or spec.entry_point is None:
        raise ValueError(f"unknown environment id {id!r}: {_nearest(name.rpartition('/')[2], env_ids())}")
    entry_point = spec.entry_point
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point, spec.kwargs


def _import(module: str, id: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise ValueError(f"environment id {id!r} names module {module!r}: expected an importable module") from error


def _option_names(creator: type[MetaEnv]) -> list[str]:
    parameters = inspect.signature(creator.__init__).parameters
    own = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in own if name not in ("self", "num_envs")] + list(MetaEnvOptions.__annotations__)


def _nearest(name: str, valid: Sequence[str]) -> str:
    return f"the nearest valid name is {get_close_matches(name, valid, n=1, cutoff=0.0)[0]!r}"
