"""Draws learning curves and adaptation curves of runs beside the environment's landmarks.

    python benchmarks/plot_runs.py docs/figures/NAME.png [LABEL=]runs/hyperrl/RUN_ID ... [--title TEXT]
        [--players NAME=RETURN ...]

Reads `metrics.jsonl` and `config.yaml` of the runs' directories; writes the numbers beside the picture as CSV.
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

Row = dict[str, float]
MANY = 4  # from here on, bands would only hide each other


def validations(run: Path) -> list[Row]:
    """The metrics of every validation, with the frames before it."""
    rows = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [{"frames": row["step"], **row["metrics"]} for row in rows if "val/return" in row["metrics"]]


def draw_landmarks(axes: Axes, known: dict[str, float]) -> None:
    """Known returns as dashed lines, named at the right; players that earn the same share one."""
    players: dict[float, list[str]] = {}
    for name, value in known.items():
        players.setdefault(value, []).append(name.replace("_", " "))
    for index, (value, names) in enumerate(players.items()):
        axes.axhline(value, color="0.55", linestyle="--", linewidth=1)
        axes.annotate(
            f"{', '.join(names)} {value:.1f}", (1.0, value), xycoords=("axes fraction", "data"),
            xytext=(-4, 3 if index else -10), textcoords="offset points", ha="right", fontsize=8, color="0.35",
        )  # fmt: skip


def draw_learning(axes: Axes, runs: dict[str, list[Row]]) -> None:
    """Return over frames; the band is one standard error."""
    for index, (label, rows) in enumerate(runs.items()):
        frames = [row["frames"] / 1e6 for row in rows]
        means = [row["val/return"] for row in rows]
        axes.plot(frames, means, color=f"C{index}", label=label)
        if len(runs) < MANY:
            errors = [row["val/return_sem"] for row in rows]
            band = [[mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1)]
            axes.fill_between(frames, *band, color=f"C{index}", alpha=0.25, linewidth=0)
    axes.set(xlabel="environment frames (millions)", ylabel="return of a task (sum over its episodes)")


def draw_adaptation(axes: Axes, runs: dict[str, list[Row]]) -> None:
    """Return of each episode at the best validation of each run."""
    width = 0.8 / len(runs)
    for index, rows in enumerate(runs.values()):
        best = max(rows, key=lambda row: row["val/return"])
        episodes = sorted(name for name in best if name.startswith("val/return_episode_"))
        places = [k + (index - (len(runs) - 1) / 2) * width for k in range(1, len(episodes) + 1)]
        axes.bar(places, [best[name] for name in episodes], color=f"C{index}", width=width)
        axes.set_xticks(range(1, len(episodes) + 1))
    axes.set(xlabel="episode of a task", ylabel="return", title="adaptation at the best validation")


def draw(runs: dict[str, list[Row]], known: dict[str, float], title: str) -> plt.Figure:
    """Learning curves at the left, adaptation at the right if there are several episodes."""
    adapts = any("val/return_episode_2" in row for rows in runs.values() for row in rows)
    ratios = (2, 1) if adapts else (1,)
    figure = plt.figure(figsize=(12 if adapts else 8, 4.6), layout="constrained")
    panels = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    draw_learning(panels[0], runs)
    draw_landmarks(panels[0], known)
    if adapts:
        draw_adaptation(panels[1], runs)
    panels[0].set_title(title)
    if len(runs) > 1:
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_csv(path: Path, runs: dict[str, list[Row]]) -> None:
    """The numbers of the picture."""
    rows = [{"run": label, **row} for label, rows in runs.items() for row in rows]
    names = ["run", "frames", *sorted(name for name in rows[0] if name.startswith("val/"))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("runs", nargs="+", help="directories of the runs, each with a label: [LABEL=]DIRECTORY")
    parser.add_argument("--title", default="")
    parser.add_argument("--players", nargs="*", default=[], help="further returns to draw as lines: NAME=RETURN")
    args = parser.parse_args()
    named = [run.rpartition("=") for run in args.runs]
    runs = {label or Path(path).name: validations(Path(path)) for label, _, path in named}
    env = yaml.safe_load((Path(named[0][2]) / "config.yaml").read_text())["data"]["env"]
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    players = {name: float(value) for name, _, value in (player.rpartition("=") for player in args.players)}
    draw(runs, {**landmarks(env), **players}, args.title or env).savefig(args.picture, dpi=130)
    write_csv(args.picture.with_suffix(".csv"), runs)


if __name__ == "__main__":
    main()
