"""Makes `rliable.npz`: what the published package computes for a stored array of scores.

    python -m venv /tmp/rliable && /tmp/rliable/bin/pip install rliable==1.2.0 "pandas<3" "numpy<2.3"
    /tmp/rliable/bin/python tests/experiments/data/generate_rliable.py

Made with rliable 1.2.0, arch 7.2.0, numpy 2.2.6, scipy 1.17.1. HyperRL does not depend on it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rliable import library, metrics

EXACT, MANY = 200, 50_000  # resamples of which the indices are stored, and of intervals for comparison


def exact_intervals(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Intervals of few resamples, with the indices that were drawn `[R, runs, tasks]`."""
    np.random.seed(7)
    bootstrap = library.StratifiedBootstrap(scores)
    indices = np.stack([bootstrap.update_indices()[0] for _ in range(EXACT)])
    found = {"indices": indices.astype(np.uint8)}
    for name, function in (("mean", metrics.aggregate_mean), ("iqm", metrics.aggregate_iqm)):
        np.random.seed(7)  # the same indices again
        _, interval = library.get_interval_estimates({"x": scores}, lambda x, f=function: np.array([f(x)]), reps=EXACT)
        found[f"exact_{name}"] = interval["x"][:, 0]
    return found


def main() -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(1, 0.4, (6, 3)) * [1, 2, 0.5]
    y = generator.normal(0.9, 0.5, (5, 3)) * [1, 2, 0.5]
    y[:2, 0] = x[:2, 0]  # ties
    pair = {"improvement": [x, y]}
    functions = {"mean": metrics.aggregate_mean, "iqm": metrics.aggregate_iqm}
    arrays = {"x": x, "y": y, **exact_intervals(x)}
    for name, function in functions.items():
        for level in (0.68, 0.95):
            np.random.seed(11)
            point, interval = library.get_interval_estimates(
                {"x": x}, lambda scores, f=function: np.array([f(scores)]), reps=MANY, confidence_interval_size=level
            )
            arrays[f"{name}_{level:.0%}".rstrip("%")] = interval["x"][:, 0]
        arrays[name] = point["x"]
    np.random.seed(11)
    point, interval = library.get_interval_estimates(
        pair, lambda *both: np.array([metrics.probability_of_improvement(*both)]), reps=2000
    )
    arrays["improvement"], arrays["improvement_95"] = point["improvement"], interval["improvement"][:, 0]
    np.savez_compressed(Path(__file__).with_name("rliable.npz"), **arrays)


if __name__ == "__main__":
    main()
