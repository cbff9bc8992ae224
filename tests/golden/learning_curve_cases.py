"""Golden learning curves: cutting, smoothing, thinning, and the choice of the best learning rates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from support import Golden

from hyperrl.experiments.comparison.curves import paper_curve, paper_scores
from hyperrl.experiments.comparison.runs import Run, Series
from hyperrl.experiments.comparison.selection import choose

RATES = ("lr_policy", "lr_vae")


def recorded_runs(golden: Golden) -> dict[str, list[Run]]:
    """The recorded runs by model; their learning rates as settings."""
    steps, values = golden["steps"].numpy(), golden["values"].numpy()
    models: dict[str, list[Run]] = {}
    for number, about in enumerate(json.loads(str(golden.arrays["runs"]))):
        tags = {"model": about["model"], "seed": str(about["seed"])}
        config = {rate: str(about[rate]) for rate in RATES}
        run = Run(str(number), tags, config, {"return": Series(steps, values[number])})
        models.setdefault(run.label, []).append(run)
    return models


def check_case(golden: Golden, number: int, case: Mapping[str, Any], models: Mapping[str, list[Run]]) -> None:
    """Compares the choice, the score of each seed and the curves of one call of the recorded program."""
    options = dict(case["options"])
    smoothing, points, step = (
        options.pop(name, default) for name, default in (("smoothing_sz", 0.1), ("max_events", 200), ("step", None))
    )
    rule = {(): "mean", ("final_r",): "final", ("AUC",): "auc"}[tuple(options)]
    scores = paper_scores(rule, smoothing)
    assert set(case["models"]) == set(models)
    for model, expected in case["models"].items():
        runs = [run.cut(step and 1000 * step) for run in models[model]]
        choice = choose(runs, scores, "return", RATES, all_count=True)
        assert [float(value) for value in choice.setting] == expected["best_lr"]
        ours = scores([run.series("return") for run in choice.runs])
        np.testing.assert_allclose(ours, expected["metric_per_seed"], rtol=1e-12)
        for run in choice.runs:
            curve = paper_curve(run.series("return"), smoothing, points)
            prefix = f"case{number}/{model}/{run.seed}"
            golden.check(f"{prefix}/x_millions", torch.from_numpy(curve.frames / 1e6), 1e-12)
            golden.check(f"{prefix}/y", torch.from_numpy(curve.values), 1e-12)


def run_learning_curves(golden: Golden) -> None:
    """All recorded calls."""
    models = recorded_runs(golden)
    cases = json.loads(str(golden.arrays["cases"]))
    assert len(cases) == 8
    for number, case in enumerate(cases):
        check_case(golden, number, case, models)
    golden.check_all_read({"runs": "read as text", "cases": "read as text"})
