"""Configuration files and checkpoints as the command line sees them: where they are, and what is wrong with them."""

from __future__ import annotations

import difflib
import functools
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace

from hyperrl.errors import ConfigError

CHECKPOINT_CONFIG = "config"
GROUPS = ("trainer", "data", "checkpoint", "model", "model.encoder", "model.policy", "model.inference", "model.ppo")


def config_root() -> Path:
    """The directory of the shipped configurations: inside the wheel, or of the repository in an editable install."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped_configs(group: str | None = None) -> dict[str, Path]:
    """Shipped configurations by name, such as ``experiment/quickstart``; ``group`` keeps those of one directory."""
    root = config_root()
    paths = sorted(root.glob(f"{group or '*'}/*.yaml"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def aliases() -> dict[str, str]:
    """Other names of shipped configurations, such as ``model/amrl_no_rnn``, and which they stand for."""
    names: dict[str, str] = yaml.safe_load((config_root() / "aliases.yaml").read_text())
    return names


def description(path: Path) -> str:
    """The first comment line of a configuration file."""
    first = path.read_text().partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the name that was probably meant; empty if none is close."""
    spelt = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), list(spelt), 1, 0.4)
    return f"; did you mean {spelt[close[0]]}?" if close else ""


def subclasses(base: type) -> set[type]:
    """All classes derived from ``base`` that are loaded."""
    children: list[type] = base.__subclasses__()
    return set(children).union(*(subclasses(child) for child in children))


def resolve_config(name: str) -> str:
    """Finds a configuration by path, or by the name or an alias of a shipped one.

    Args:
        name: a path; or ``experiment/quickstart``, or ``configs/experiment/quickstart.yaml`` from anywhere.

    Returns:
        The path of an existing file.

    Raises:
        ConfigError: there is no such file.
    """
    if Path(name).is_file():
        return name
    shipped = shipped_configs()
    known = {**shipped, **{alias: shipped[of] for alias, of in aliases().items()}}
    key = name.removeprefix("configs/").removesuffix(".yaml")
    if key in known:
        return str(known[key])
    raise ConfigError(f"--config {name}: no such file, and no shipped configuration of that name{nearest(key, known)}")


def model_name(config: dict[str, Any]) -> str:
    """The shipped model whose settings ``config`` has, of several the one with most; ``custom`` if none matches."""
    settings = {name: _settings(path) for name, path in shipped_configs("model").items()}
    matching = [name for name in settings if _contains(config, settings[name])]
    return max(matching, key=lambda name: _size(settings[name]), default="model/custom").removeprefix("model/")


@functools.cache
def _settings(path: Path) -> dict[str, Any]:
    """What a configuration file holds."""
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    return settings


def _size(part: Any) -> int:
    """The number of values of a configuration."""
    return sum(map(_size, part.values())) if isinstance(part, dict) else 1


def _contains(config: Any, part: Any) -> bool:
    """Whether ``config`` has every value of ``part``."""
    if isinstance(config, dict) and isinstance(part, dict):
        return all(key in config and _contains(config[key], value) for key, value in part.items())
    return bool(config == part)


def check_groups(config: Any) -> None:
    """Refuses a value where a group of keys belongs."""
    for name in GROUPS:
        value = config.get(name)
        if not isinstance(value, dict | Namespace):
            raise ConfigError(
                f"{name} is {value}; expected keys and values, such as `hyperrl fit --print_config` shows"
            )


def check_training(config: Any) -> None:
    """Refuses settings of ``fit`` under which the best checkpoint would not be the best."""
    for name, expected in (("check_val_every_n_epoch", 1), ("limit_val_batches", None)):
        if config.trainer[name] not in (expected, 1.0):
            raise ConfigError(
                f"trainer.{name} is {config.trainer[name]}; expected {expected}: each epoch ends with a validation "
                "that judges its checkpoint; data.rollouts_per_epoch sets the interval"
            )
    loss, replaces = config.model.inference.encoder_loss, config.model.policy.task_replaces
    at_times = (
        f"model.inference.encoder_loss is {loss}, whose losses train" if loss in ("inference", "both")
        else f"model.policy.task_replaces is {replaces}, which trains" if replaces != "none"
        else None
    )  # fmt: skip
    if config.trainer.strategy == "ddp" and at_times:
        raise ConfigError(
            f"trainer.strategy is ddp and {at_times} different parameters at different times; expected "
            "ddp_find_unused_parameters_true"
        )
    monitor = str(config.checkpoint.monitor)
    if not re.fullmatch(r"val/(return(_episode_\d+)?|success_(mean|fraction))", monitor):
        raise ConfigError(f"checkpoint.monitor is {monitor}; expected val/return or another mean of docs/metrics.md")


def usable_precision(precision: str, accelerator: str) -> str:
    """The precision to compute in: fp32 in place of bf16 on a processor that would have to emulate it.

    Raises:
        ConfigError: learning is not correct in that precision.
    """
    if precision in ("32", "32-true"):
        return precision
    if precision not in ("bf16", "bf16-mixed"):
        raise ConfigError(f"trainer.precision is {precision}; expected 32-true or bf16-mixed")
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    return "32-true" if on_cpu and not _has_bf16_units() else precision


def _has_bf16_units() -> bool:
    """Whether matrix products in bf16 are native: AVX512-BF16 or AMX on x86, as oneDNN says elsewhere."""
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint (tensors are mapped, not copied).

    Raises:
        ConfigError: the file is missing, or not a checkpoint of HyperRL.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--ckpt_path {path}: no such file; expected a checkpoint (.ckpt)")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises whatever its parsers raise
        raise ConfigError(f"--ckpt_path {path}: not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_CONFIG not in checkpoint:
        raise ConfigError(f"--ckpt_path {path}: not a checkpoint of hyperrl; expected one that `hyperrl fit` wrote")
    return checkpoint


def check_fits(path: str, saved: dict[str, torch.Tensor], model: dict[str, torch.Tensor]) -> None:
    """Refuses a checkpoint of another model, naming the first parameter that differs.

    Args:
        path: the checkpoint's path, for the message.
        saved: parameters and buffers in the checkpoint.
        model: parameters and buffers of the configured model.

    Raises:
        ConfigError: a name or a shape differs.
    """
    for name in sorted(saved.keys() | model.keys()):
        found, expected = (tuple(state[name].shape) if name in state else "none" for state in (saved, model))
        if found != expected:
            raise ConfigError(
                f"--ckpt_path {path} is of another model: {name} has shape {found} there; expected {expected}, as "
                "configured"
            )


def check_continues(path: str, checkpoint: dict[str, Any], config: Any) -> None:
    """Refuses to go on with other optimisers than those of the checkpoint.

    Args:
        path: the checkpoint's path, for the message.
        checkpoint: the checkpoint.
        config: what is configured now.

    Raises:
        ConfigError: something else trains the encoder, or another optimiser the policy.
    """
    saved = yaml.safe_load(checkpoint[CHECKPOINT_CONFIG])["model"]
    for group, name, default in (("inference", "encoder_loss", "rl"), ("ppo", "optimizer", "adam")):
        before, now = (saved.get(group) or {}).get(name, default), config.model[group][name]
        if before != now:
            raise ConfigError(
                f"model.{group}.{name} is {now} and --ckpt_path {path} was trained with {before}; expected {before}, "
                "to which its optimisers belong"
            )


def one_line(message: str) -> str:
    """Condenses a parser's message to one line: the key, the value, and what was expected."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    text = re.sub(r"\s+", " ", " ".join(lines)).strip()
    text = re.sub(r"Parser key \"([^\"]*)\":", r"\1:", text)
    union = re.match(
        r"(?P<key>\S+) Does not validate against any of the Union subtypes Subtypes: \[(?P<types>.*?)\] Errors:", text
    )
    value = re.search(r"(?:Got|Given) value: (\S+)", text)
    if union and value:
        text = f"{union['key']} got {value[1]}; expected one of {union['types']}"
    return re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
