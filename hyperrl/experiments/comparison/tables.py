"""The numbers of a comparison as rows: on the screen, as Markdown and as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.comparison import Comparison, Quantity, Settings
from hyperrl.experiments.comparison.runs import Floats
from hyperrl.experiments.comparison.statistics import Estimate, estimate, estimate_improvement, interquartile_mean

ALL = "all, normalised"


class Row(NamedTuple):
    """A quantity of a model.

    Attributes:
        env: the environment, or `ALL`.
        model: the model's label.
        setting: the hyper-parameters that were chosen; empty where there was no choice.
        n: number of runs.
        complete: whether all of them are.
        quantity: `final`, `best`, ...
        mean: over runs.
        iqm: interquartile mean.
        improvement: probability of improvement over the baseline, if there is one.
    """

    env: str
    model: str
    setting: str
    n: int
    complete: bool
    quantity: str
    mean: Estimate
    iqm: Estimate
    improvement: Estimate | None


def make_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    """All rows: of each environment and, where all of them have landmarks, of all together.

    Over environments, scores are normalised to 0 for the random player and 1 for the Bayes-optimal one, and the
    bootstrap is stratified by environment.

    Raises:
        ConfigError: no model has any of the quantities.
    """
    rows: list[Row] = []
    for comparison in comparisons:
        strata = {quantity: [comparison.scores(quantity)] for quantity in comparison.settings.quantities}
        for choice in comparison.choices:
            texts = comparison.env, choice.label, choice.name
            rows += _rows_of(texts, choice.is_complete, strata, comparison.settings)
    if not rows:
        names = ", ".join(comparisons[0].settings.quantities)
        raise ConfigError(f"quantities: {names}: no model has them for {comparisons[0].settings.metric}")
    known = [comparison.landmarks for comparison in comparisons]
    if len(comparisons) < 2 or not all({"random", "bayes_optimal"} <= landmarks.keys() for landmarks in known):
        return rows
    settings = comparisons[0].settings
    # The area of the papers is not divided by the frames, so it has no landmarks.
    quantities = [quantity for quantity in settings.quantities if not (settings.paper and quantity == "auc")]
    strata = {quantity: [_normalised(comparison, quantity) for comparison in comparisons] for quantity in quantities}
    labels = [{choice.label: choice.is_complete for choice in comparison.choices} for comparison in comparisons]
    for label in labels[0]:
        if all(label in others for others in labels):
            rows += _rows_of((ALL, label, ""), all(others[label] for others in labels), strata, settings)
    return rows


def _normalised(comparison: Comparison, quantity: Quantity) -> dict[str, Floats]:
    low, high = (comparison.landmarks[name] for name in ("random", "bayes_optimal"))
    return {label: (scores - low) / (high - low) for label, scores in comparison.scores(quantity).items()}


def _rows_of(
    texts: tuple[str, str, str], complete: bool, strata: Mapping[Quantity, list[dict[str, Floats]]], settings: Settings
) -> list[Row]:
    """The rows of a model, from the scores by quantity, stratum and label."""
    rows = []
    level, seed, sign = settings.percent, settings.seed, -1 if settings.lowest else 1
    for quantity, scores in strata.items():
        if not all(texts[1] in each for each in scores):
            continue
        ours = [each[texts[1]] for each in scores]
        improvement = None
        if settings.baseline not in (None, texts[1]) and all(settings.baseline in each for each in scores):
            theirs = [each[settings.baseline] for each in scores]
            better, worse = ([sign * each for each in side] for side in (ours, theirs))
            improvement = estimate_improvement(better, worse, level, seed=seed)
        mean = estimate(ours, level=level, seed=seed)
        iqm = estimate(ours, interquartile_mean, level, seed=seed)
        n = int(np.sum([len(each) for each in ours]))
        rows.append(Row(*texts, n, complete, quantity, mean, iqm, improvement))
    return rows


def cells(rows: Sequence[Row], settings: Settings) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table for readers; columns that say nothing are left out."""
    level = f"{settings.percent:g} %"
    columns: dict[str, list[str]] = {
        "environment": [row.env for row in rows],
        "model": [row.model + "*" * (not row.complete) for row in rows],
        "chosen": [row.setting * (row.quantity == settings.quantities[0]) for row in rows],  # once per model
        "n": [str(row.n) for row in rows],
        "quantity": [row.quantity for row in rows],
        f"mean [{level}]": [_text(row.mean) for row in rows],
        f"IQM [{level}]": [_text(row.iqm) for row in rows],
    }
    if settings.baseline is not None:
        columns[f"P(better than {settings.baseline})"] = [
            _text(row.improvement) if row.improvement else "" for row in rows
        ]
    if len({row.env for row in rows}) == 1:
        del columns["environment"]
    if not any(columns["chosen"]):
        del columns["chosen"]
    return list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10_000 else f"{value:.5g}"


def _text(of: Estimate) -> str:
    """The value and, where it is known, its interval."""
    interval = "" if math.isnan(of.low) else f" [{_number(of.low)}, {_number(of.high)}]"
    return f"{_number(of.value)}{interval}"


def rich_table(header: Sequence[str], lines: Iterable[Sequence[str]], title: str) -> Table:
    """The table for a terminal; numbers at the right."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for name in header:
        is_text = name in ("environment", "model", "chosen", "quantity")
        table.add_column(name, justify="left" if is_text else "right")
    for line in lines:
        table.add_row(*line)
    return table


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """The table as GitHub shows it."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, *lines)).replace(
        "|\n", f"|\n|{'---|' * len(header)}\n", 1
    )


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """All numbers in full; an empty field is an unknown one."""
    numbers = [f"{name}{end}" for name in ("mean", "iqm", "improvement") for end in ("", "_low", "_high")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["env", "model", "setting", "n", "complete", "quantity", *numbers])
        for row in rows:
            estimates = [row.mean, row.iqm, row.improvement or (math.nan,) * 3]
            values = [value for one in estimates for value in one]
            writer.writerow([*row[:6], *("" if math.isnan(value) else repr(float(value)) for value in values)])
