"""SWEEP.yaml: what it may hold, and the jobs that it stands for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hyperrl import configuration
from hyperrl.errors import ConfigError

_SET_KEYS = ("config", "shared", "models", "search", "seeds")
_KEYS = ("name", *_SET_KEYS, "sets")
SEED = "seed_everything"


@dataclass(frozen=True)
class Job:
    """One run of a sweep, as written in the file.

    Attributes:
        sweep: name of the sweep.
        label: name of the model.
        name: what tells it from the other jobs: its set, label, searched values and seed.
        configs: configuration files, the later ones over the earlier ones.
        settings: values of dotted keys, over the files; the seed is one of them.
        searched: keys of `settings` that differ between the jobs of one model.
    """

    sweep: str
    label: str
    name: str
    configs: tuple[str, ...]
    settings: dict[str, Any]
    searched: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``hyperrl fit``."""
        files = [argument for config in self.configs for argument in ("--config", config)]
        return [*files, *(f"--{key}={as_text(value)}" for key, value in self.settings.items())]


def as_text(value: Any) -> str:
    """A value as the command line takes it.

    Example:
        >>> as_text("3e-4"), as_text([8, 8]), as_text(None), as_text(0.1)
        ('3e-4', '[8, 8]', 'null', '0.1')
    """
    return value if isinstance(value, str) else json.dumps(value)


def find_sweep(name: str) -> Path:
    """Finds a sweep file by path, or by the name of a shipped one, with or without ``sweep/``.

    Raises:
        ConfigError: there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = configuration.shipped_configs("sweep")
    key = "sweep/" + name.removeprefix("configs/").removeprefix("sweep/").removesuffix(".yaml")
    if key in shipped:
        return shipped[key]
    raise ConfigError(f"{name}: no such file, and no shipped sweep of that name{configuration.nearest(key, shipped)}")


def read_jobs(path: Path) -> list[Job]:
    """Expands a sweep file: sets x models x searched values x seeds, the last fastest.

    Settings are merged in the order shared < model < search < seed; those of a set win over those of the whole file.

    Raises:
        ConfigError: the file is not a sweep.
    """
    sweep = _read(path)
    _check_keys(path.name, sweep, _KEYS)
    sets = sweep.get("sets") or {"": {}}
    _check_type("sets", sets, Mapping)
    common = {key: sweep[key] for key in _SET_KEYS if key in sweep}
    name = str(sweep.get("name") or path.stem)
    jobs = [job for label, part in sets.items() for job in _expand(name, str(label), common, part or {})]
    if not jobs:
        raise ConfigError(f"{path.name} has no models; expected models: {{LABEL: {{config: [...]}}}}")
    return jobs


def _expand(sweep: str, set_name: str, common: Mapping[str, Any], part: Mapping[str, Any]) -> list[Job]:
    where = f"sets.{set_name}." if set_name else ""
    _check_type(where.rstrip(".") or "sweep", part, Mapping)
    if set_name:
        _check_keys(where.rstrip("."), part, _SET_KEYS)
    shared = _merged(where, "shared", common, part)
    search = _merged(where, "search", common, part)
    models = _merged(where, "models", common, part)
    seeds = part.get("seeds", common.get("seeds"))
    for key, values in search.items():
        _check_type(f"{where}search.{key}", values, list)
    if seeds is not None:
        _check_type(f"{where}seeds", seeds, list)
        if SEED in search:
            raise ConfigError(f"{where}search has {SEED}, which {where}seeds sets, too; expected one of them")
        search[SEED] = seeds
    _check_settings(f"{where}shared", shared)
    _check_settings(f"{where}search", search)
    names = _short_names(list(search))
    jobs = []
    for label, model in models.items():
        _check_type(f"{where}models.{label}", model or {}, Mapping)
        own = dict(model or {})
        files = [*_files(where, common), *_files(where, part), *_files(f"{where}models.{label}.", own)]
        own.pop("config", None)
        _check_settings(f"{where}models.{label}", own)
        for values in itertools.product(*search.values()):
            chosen = dict(zip(search, values, strict=True))
            shown = [f"{names[key]}={as_text(value)}" for key, value in chosen.items()]
            name = " ".join([f"{set_name}/{label}" if set_name else str(label), *shown])
            jobs.append(Job(sweep, str(label), name, tuple(files), {**shared, **own, **chosen}, tuple(search)))
    return jobs


def _merged(where: str, key: str, common: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for source in (common, part):
        _check_type(f"{where}{key}", source.get(key) or {}, Mapping)
        result |= source.get(key) or {}
    return result


def _files(where: str, node: Mapping[str, Any]) -> list[str]:
    """The configurations of a part; files of the user's are written whole, since a job may run elsewhere."""
    names = node.get("config") or []
    names = [names] if isinstance(names, str) else names
    _check_type(f"{where}config", names, list)
    return [str(Path(configuration.resolve_config(str(name))).absolute()) for name in names]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """What keys are called in the names of jobs: so many of their last parts that each name means one key.

    Example:
        >>> _short_names(["model.ppo.lr", "model.inference.lr", "model.ppo.clip"])
        {'model.ppo.lr': 'ppo.lr', 'model.inference.lr': 'inference.lr', 'model.ppo.clip': 'clip'}
    """
    whole = {key: "seed" if key == SEED else key for key in keys}

    def ends(name: str) -> int:
        return sum(f".{other}".endswith(f".{name}") for other in whole.values())

    result = {}
    for key, name in whole.items():
        parts = name.split(".")
        endings = [".".join(parts[first:]) for first in reversed(range(len(parts)))]
        result[key] = next((ending for ending in endings if ends(ending) == 1), name)
    return result


def _check_keys(where: str, node: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in node:
        if key not in known:
            hint = configuration.nearest(str(key), known)
            raise ConfigError(f"{where} has the key {key}; expected one of {', '.join(known)}{hint}")


def _check_settings(where: str, settings: Mapping[Any, Any]) -> None:
    """Refuses what the command line of ``hyperrl fit`` cannot say."""
    for key, value in settings.items():
        if not isinstance(key, str):
            raise ConfigError(f"{where} has the key {key}; expected the name of a setting, such as model.ppo.lr")
        try:
            as_text(value)
        except TypeError as error:
            raise ConfigError(f"{where}.{key} is {value} ({error}); expected quoted text, numbers, lists") from error


def _check_type(where: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind) or (kind is list and not value and not where.endswith("config")):
        expected = "a list of values" if kind is list else "keys and values"
        raise ConfigError(f"{where} is {value}; expected {expected}")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise ConfigError(f"line {node.start_mark.line + 1}: the key {twice} stands twice; expected it once")
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), _Loader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable YAML file ({configuration.one_line(str(error))})") from error
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from error
    _check_type(str(path), content, Mapping)
    return dict(content)
