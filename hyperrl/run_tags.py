"""How a run describes itself to MLflow: parameters and tags out of its configuration and its surroundings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import posixpath
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hyperrl

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

_MAX_PER_CALL = 100
_MAX_NAME = 250
_MAX_VALUE = 250
# What cannot change a result: where things are read from and written to, and what is shown meanwhile. Whatever decides
# which checkpoint is tested is not among it.
NOT_IN_IDENTITY = re.compile(
    r"(config|ckpt_path|weights_only|print_config"
    r"|trainer\.(logger|default_root_dir|log_every_n_steps|profiler|enable_(progress_bar|model_summary|autolog_hparams))"
    r"|checkpoint\.(dirpath|filename|auto_insert_metric_name|verbose))\b"
)
# What may differ between the seeds of one group: the same, and the seed itself.
NOT_IN_GROUP = re.compile(rf"{NOT_IN_IDENTITY.pattern}|(.*\.)?seed(_everything)?$")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested configuration as one level of text; names are paths joined by dots, whole and uncut.

    Args:
        config: Nested mappings; a list counts as one value unless it holds mappings.
        prefix: What all names begin with.

    Example:
        >>> flatten({"model": {"lr": 0.1, "sizes": [8, 8]}, "callbacks": [{"class_path": "A"}]})
        {'model.lr': '0.1', 'model.sizes': '[8, 8]', 'callbacks.0.class_path': 'A'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = str(value)
    return flat


def config_tags(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags ``env``, ``model``, ``seed``, ``group`` and ``identity``.

    Runs that differ only in the seed share a ``group``; runs with the same ``identity`` (`flat_identity`) are one and
    the same.

    ``env`` is the name of ``data.env`` and ``model`` that of ``model.name`` or of the model itself, where a name is
    text, a key ``name`` or ``id``, or the last part of a ``class_path``.

    Example:
        >>> config = {"seed_everything": 3, "model": {"name": "rnn"}, "data": {"env": {"class_path": "envs.TMaze"}}}
        >>> tags = config_tags(config)
        >>> tags["env"], tags["model"], tags["seed"], tags["group"]
        ('TMaze', 'rnn', '3', 'TMaze-rnn-aaa8dcff')
    """
    env = _short_name(_child(config.get("data"), "env")) or "unknown"
    model = _short_name(_child(config.get("model"), "name")) or _short_name(config.get("model")) or "unknown"
    flat = flatten(config)
    group = f"{env}-{model}-{_digest(flat, NOT_IN_GROUP)[:8]}"
    seed = config.get("seed_everything", config.get("seed"))
    return {"env": env, "model": model, "seed": str(seed), "group": group, "identity": flat_identity(flat)}


def flat_identity(flat: Mapping[str, str]) -> str:
    """Return what two runs have in common if and only if they are the same: a hash of configuration and seed.

    What cannot change a result does not matter (`NOT_IN_IDENTITY`). The number in front is the version of this rule.

    Args:
        flat: The resolved configuration, as `flatten` returns it.

    Example:
        >>> flat_identity({"seed_everything": "3", "trainer.logger.init_args.save_dir": "runs"})
        'v2-fc68ee3290cdb262b39ff3cd59a67e56'
    """
    return f"v2-{_digest(flat, NOT_IN_IDENTITY)[:32]}"


def _digest(flat: Mapping[str, str], left_out: re.Pattern[str]) -> str:
    kept = {name: value for name, value in flat.items() if not left_out.match(name)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _child(node: Any, key: str) -> Any:
    if not isinstance(node, Mapping):
        return None
    return node[key] if key in node else _child(node.get("init_args"), key)


def _short_name(node: Any) -> str:
    if isinstance(node, Mapping):
        node = next((child for key in ("name", "id", "class_path") if (child := _child(node, key))), "")
    return node.rsplit(".", 1)[-1] if isinstance(node, str) else ""


def version_tags() -> dict[str, str]:
    """Return the versions that a result depends on, and the commit (``-dirty`` if changed).

    The commit is that of HyperRL if it runs from its own repository, wherever the command was given; otherwise that of
    the repository of the current directory, which may hold the configurations. There is none outside of both.
    """
    tags = {f"version.{name}": importlib.metadata.version(name) for name in ("torch", "torchrl", "lightning")}
    tags |= {"version.hyperrl": hyperrl.__version__, "version.python": platform.python_version()}
    source = Path(hyperrl.__file__)
    tracked = _git(source.parent, "ls-files", "--error-unmatch", source.name) is not None
    place = source.parent if tracked else Path.cwd()
    commit = _git(place, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    return tags | ({"git_commit": commit} if commit else {})


def _git(directory: Path, *args: str) -> str | None:
    """What git says there; None without git, repository or commit."""
    command = ["git", "-C", str(directory), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def clean_name(name: str) -> str:
    """Return a name that MLflow takes for a metric, parameter or tag.

    Example:
        >>> clean_name("train/return (mean)//x")
        'train/return _mean_/x'
    """
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name)).strip("/")[:_MAX_NAME]


def send_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(clean_name(name), value) for name, value in tags.items()])


def send_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log a run's parameters, cut to the length that MLflow's UI is made for.

    MLflow never changes a parameter. What a resumed run changes is therefore in its tag ``changed_on_resume``.
    """
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    cut = {clean_name(name): value[:_MAX_VALUE] for name, value in params.items()}
    new = [Param(name, value) for name, value in cut.items() if name not in known]
    for first in range(0, len(new), _MAX_PER_CALL):
        client.log_batch(run_id, params=new[first : first + _MAX_PER_CALL])
    changed = [f"{name}: {known[name]} -> {value}" for name, value in cut.items() if known.get(name, value) != value]
    if changed:
        send_tags(client, run_id, {"changed_on_resume": "; ".join(changed)[:5000]})
