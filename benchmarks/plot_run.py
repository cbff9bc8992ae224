"""Draws the learning curve and the adaptation curve of a run beside the environment's landmarks.

    python benchmarks/plot_run.py runs/hyperrl/RUN_ID docs/figures/NAME.png [--title TEXT]

Reads `metrics.jsonl` and `config.yaml` of the run's directory; writes the numbers beside the picture as CSV.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
import yaml
from matplotlib.axes import Axes

from hyperrl.envs import landmarks


def validations(run: Path) -> list[dict[str, float]]:
    """The metrics of every validation, with the frames before it."""
    rows = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [{"frames": row["step"], **row["metrics"]} for row in rows if "val/return" in row["metrics"]]


def draw_landmarks(axes: Axes, known: dict[str, float]) -> None:
    """Known returns as dashed lines, named at the right."""
    for index, (name, value) in enumerate(known.items()):
        axes.axhline(value, color="0.55", linestyle="--", linewidth=1)
        axes.annotate(
            f"{name.replace('_', ' ')} {value:.1f}", (1.0, value), xycoords=("axes fraction", "data"),
            xytext=(-4, 3 if index else -10), textcoords="offset points", ha="right", fontsize=8, color="0.35",
        )  # fmt: skip


def draw(rows: list[dict[str, float]], known: dict[str, float], title: str) -> plt.Figure:
    """Return over frames at the left, return of each episode of the best validation at the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 1), layout="constrained")
    frames = [row["frames"] / 1e6 for row in rows]
    means = [row["val/return"] for row in rows]
    errors = [row["val/return_sem"] for row in rows]
    left.plot(frames, means, color="C0")
    band = [[mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1)]
    left.fill_between(frames, *band, color="C0", alpha=0.25, linewidth=0)
    draw_landmarks(left, known)
    left.set(xlabel="environment frames (millions)", ylabel="return of a task (sum over its episodes)", title=title)
    best = max(rows, key=lambda row: row["val/return"])
    episodes = sorted(name for name in best if name.startswith("val/return_episode_"))
    right.bar(range(1, len(episodes) + 1), [best[name] for name in episodes], color="C0", width=0.6)
    right.set(xlabel="episode of a task", ylabel="return", title=f"adaptation at {best['frames'] / 1e6:.2f} M frames")
    right.set_xticks(range(1, len(episodes) + 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    rows = validations(args.run)
    env = yaml.safe_load((args.run / "config.yaml").read_text())["data"]["env"]
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, landmarks(env), args.title or env).savefig(args.picture, dpi=130)
    with args.picture.with_suffix(".csv").open("w", newline="") as file:
        names = ["frames", *sorted(name for name in rows[0] if name.startswith("val/"))]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
