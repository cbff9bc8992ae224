"""`analyze`: curves of a quantity for some memories, as a picture and as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hyperrl.configuration import nearest
from hyperrl.errors import ConfigError
from hyperrl.experiments.analysis.feed import Feed
from hyperrl.experiments.analysis.inputs import Synthetic
from hyperrl.experiments.analysis.memories import Model
from hyperrl.experiments.analysis.pictures import Curves, draw_curves, draw_final
from hyperrl.experiments.analysis.quantities import QUANTITIES, Name, Quantity

PUBLISHED = ("model/rnn_hn", "model/amrl", "model/splagger", "model/splagger_no_rnn")
STEPS, STRONG_STEPS = 100, 2000
PICTURES = (".png", ".pdf", ".svg")


def analyze(
    quantity: Name,
    models: list[str] = list(PUBLISHED),  # noqa: B006 - never changed
    inputs: Literal["noise", "signal"] | None = None,
    trajectories: str | None = None,
    steps: int | None = None,
    scale: float = 1.0,
    strong: bool = False,
    strong_probability: float = 0.01,
    strong_block: float = 0.2,
    agents: int = 3,
    runs: int | None = None,
    final: bool = False,
    ci: float = 68.0,
    log: bool | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    title: str | None = None,
    output: Path | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Measure how a memory passes on information and gradients from step to step.

    Writes a picture, and a CSV file of the same name with the columns model, seed, t, value. docs/analysis.md explains
    the quantities. The same options give the same numbers.

    Args:
        quantity: What is measured.
        models: Memories to compare: shipped configurations (model/splagger) or files, whose memory is untrained, and
            checkpoints (.ckpt) or bundles. NAME=SOURCE names one in the picture.
        inputs: What the memory is fed with, where the quantity leaves a choice. Default: noise.
        trajectories: Feed what happens in an environment instead, through the models' embeddings: a checkpoint or
            bundle, whose agent plays, or the id of an environment, with random actions.
        steps: Number of inputs. Default: 100, 2000 of a strong signal, or the length of the shortest trajectory.
        scale: Size of synthetic inputs.
        strong: Let the signal come at random steps instead of once, at the first step.
        strong_probability: Chance of a strong signal at each step.
        strong_block: Last fraction of the steps, in which there is no strong signal.
        agents: Number of initialisations, with seeds 0, 1, 2, ... A trained memory differs in its inputs only.
        runs: Input sequences per agent that are averaged over. Default: 1 for gradients and normalized_norm, else 5.
        final: Draw bars of the last value, too, with numbers of their own.
        ci: Percent of bootstrap means over agents that lie in the drawn interval.
        log: Whether the vertical axis is logarithmic. Default: as the quantity is usually drawn.
        limits: Lower and upper end of the vertical axis; null for where the data end.
        title: Title of the picture. Default: what the quantity is.
        output: The picture. Default: analysis_QUANTITY.png.

    Returns:
        The curves [agents, steps] by model.

    Raises:
        ConfigError: An option is wrong, or fits no other.
    """
    if quantity not in QUANTITIES:
        raise ConfigError(
            f"quantity is {quantity}; expected one of {', '.join(QUANTITIES)}{nearest(quantity, QUANTITIES)}"
        )
    what = QUANTITIES[quantity]
    _check_options(quantity, what, inputs, trajectories, strong)
    _check_numbers(models, agents, runs, ci)
    path = output or Path(f"analysis_{quantity}.png")
    _check_picture(path, limits)
    length = (STRONG_STEPS if strong else STEPS) if steps is None else steps
    synthetic = Synthetic(length, scale, strong, strong_probability, strong_block)
    feed = Feed(synthetic, what.runs if runs is None else runs, inputs or "noise", trajectories, steps)
    curves = {
        name: np.stack([feed.curve(what, model, seed) for seed in range(agents)])
        for name, model in _read(models).items()
    }

    looks: dict[str, Any] = {
        "title": title or what.title,
        "label": what.label,
        "log": what.log if log is None else log,
        "ci": ci,
    }
    draw_curves(curves, path, step=what.step, limits=limits, **looks)
    written = [path]
    if final:
        written.append(path.with_stem(f"{path.stem}_final"))
        draw_final(curves, written[-1], **looks)
    _report(what, curves, written)
    return curves


def _check_options(name: str, quantity: Quantity, inputs: str | None, trajectories: str | None, strong: bool) -> None:
    """Refuses what would be ignored."""
    if trajectories is not None and quantity.inputs != ("chosen",):
        raise ConfigError(f"trajectories is {trajectories}; expected none, as {name} needs signals or noise")
    if inputs is not None and "chosen" not in quantity.inputs:
        raise ConfigError(f"inputs is {inputs}; expected none, as {name} needs {' and '.join(quantity.inputs)}")
    if inputs is not None and trajectories is not None:
        raise ConfigError(f"inputs is {inputs} and trajectories is {trajectories}; expected one of them")
    if strong and "signal" not in quantity.inputs and (inputs != "signal" or "chosen" not in quantity.inputs):
        raise ConfigError("strong is true and there is no signal; expected inputs: signal, or signal_to_noise")


def _check_numbers(models: list[str], agents: int, runs: int | None, ci: float) -> None:
    """Refuses numbers out of range."""
    if not models:
        raise ConfigError("models is empty; expected at least one")
    for name, value in (("agents", agents), ("runs", runs)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    if not 0 < ci < 100:
        raise ConfigError(f"ci is {ci}; expected a number of percent between 0 and 100")


def _check_picture(path: Path, limits: tuple[float | None, float | None]) -> None:
    """Refuses what would fail after everything is computed."""
    if path.suffix not in PICTURES:
        raise ConfigError(f"output is {path}; expected a name that ends in {', '.join(PICTURES)}")
    lower, upper = limits
    if lower is not None and upper is not None and lower >= upper:
        raise ConfigError(f"limits is {list(limits)}; expected the lower end first")


def _read(models: list[str]) -> dict[str, Model]:
    """The models by the names that they have in the picture."""
    result: dict[str, Model] = {}
    for source in models:
        name, given, path = source.partition("=")
        if not given or Path(source).exists():
            name, path = source.removeprefix("model/"), source
        if name in result:
            raise ConfigError(f"models: {name} is there twice; expected NAME=SOURCE to tell them apart")
        result[name] = Model.read(path)
    return result


def _report(quantity: Quantity, curves: Curves, written: list[Path]) -> None:
    """Prints means over agents at some steps, and what was written."""
    length = max(values.shape[1] for values in curves.values())
    at = [0, *(t for t in (1, 9, 49) if t < length - 1), length - 1]
    table = Table("model", *(f"t={t}" for t in dict.fromkeys(at)), title=quantity.label, box=None, pad_edge=False)
    for name, values in curves.items():
        table.add_row(name, *(f"{values[:, t].mean():.3g}" for t in dict.fromkeys(at)))
    console = Console()
    console.print(table)
    for path in written:
        console.print(f"written   {path} and {path.with_suffix('.csv').name}", soft_wrap=True)
