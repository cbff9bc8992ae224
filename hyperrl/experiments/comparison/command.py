"""`hyperrl compare`: from runs to a table and pictures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison import tables
from hyperrl.experiments.comparison.comparison import Comparison, Direction, Quantity, Settings
from hyperrl.experiments.comparison.curves import Measure
from hyperrl.experiments.comparison.figures import check_picture, draw_bars, draw_comparison
from hyperrl.experiments.comparison.report import write_report
from hyperrl.experiments.comparison.runs import for_export, number, split, write_runs
from hyperrl.experiments.comparison.sources import find_runs


def compare(
    sources: list[str],
    metric: str = "val/return",
    rule: Measure = "mean",
    direction: Direction = "max",
    over: list[str] | None = None,
    choose_on: list[int] | None = None,
    quantities: list[Quantity] | None = None,
    baseline: str | None = None,
    last: float = 0.1,
    smoothing: float = 0.1,
    level: float | None = None,
    until: int | None = None,
    paper: bool = False,
    seed: int = 0,
    where: list[str] | None = None,
    tracking_uri: str | None = None,
    markdown: Path | None = None,
    csv: Path | None = None,
    plot: Path | None = None,
    bars: Path | None = None,
    title: str = "",
    players: list[str] | None = None,
    export: Path | None = None,
    report: Path | None = None,
) -> None:
    """Compare models: the best setting of each, its numbers with intervals, and pictures.

    Runs with the same label (by default the name of their model) are one model. Where they differ in more than the
    seed, the best setting is chosen by `rule`, and its runs, one per seed, are reported.

    Args:
        sources: Each `[LABEL=]WHAT`, where WHAT is a file of exported runs (.csv), a directory with runs in it, or the
            name of an MLflow experiment. Without any: the experiment `hyperrl`.
        metric: What is compared, over frames.
        rule: How the best setting is chosen: by the mean over training, the final value, the area under the curve or
            the best value, each averaged over runs.
        direction: Whether higher (max) or lower (min) values are better.
        over: Keys of the configuration to choose over, such as model.ppo.lr. Default: all in which runs differ.
        choose_on: Seeds on whose runs the choice rests; the others are reported. Default: all serve for both, which
            is optimistic, as in the papers.
        quantities: What the table shows. Default: final, best, auc and, of runs that were tested, test.
        baseline: Label of the model to which the others are compared by the probability of improvement.
        last: The part of training over which `final` is averaged; 0 takes the last value.
        smoothing: The part of all points over which curves are averaged before they are drawn (trailing); 0: none.
        level: Of all intervals, in percent. Default: 95, with `paper` 68.
        until: Cuts all runs before this number of frames.
        paper: The papers' convention: 68 percent bootstrap, every run over its own length, incomplete ones included,
            `final` the last smoothed value, `auc` not divided by the frames.
        seed: Of the bootstrap.
        where: Keeps runs with these tags, each TAG=VALUE, such as env=GridNavi-v0 or sweep=NAME.
        tracking_uri: Of MLflow. Default: MLFLOW_TRACKING_URI or, without it, runs/mlflow.db.
        markdown: Writes the table there as Markdown.
        csv: Writes the table there as CSV, in full precision.
        plot: Draws learning and adaptation curves there (.png, .pdf or .svg), with a .csv beside it.
        bars: Draws the table's means there (.png, .pdf or .svg), with a .csv beside it.
        title: Of the pictures. Default: the environment.
        players: Further returns to draw as lines, each NAME=VALUE.
        export: Writes the runs there (.csv): validations, tests, configuration and versions.
        report: Reproduces a document from this manifest, such as results/report.yaml, instead of all this.

    Raises:
        ConfigError: a source, a setting or a run is not as it has to be.
        TrackingError: MLflow cannot be used.
    """
    given = dict(locals())
    console = Console()
    if report is not None:
        _refuse_others(given)
        for path in write_report(report):
            console.print(f"written  {path}", highlight=False, soft_wrap=True)
        return
    lines = {
        name: number(f"players: {name}", value) for name, value in (split("players", text) for text in players or ())
    }
    _check_outputs({"markdown": markdown, "csv": csv, "export": export, "plot": plot, "bars": bars})
    settings = Settings(
        metric=metric,
        rule=rule,
        direction=direction,
        over=over,
        choose_on=tuple(choose_on or ()),
        quantities=tuple(quantities or Settings.quantities),
        baseline=baseline,
        last=last,
        smoothing=smoothing,
        level=level,
        until=until,
        paper=paper,
        seed=seed,
    )
    settings.check()
    runs = find_runs(sources, where or (), tracking_uri)
    comparisons = Comparison.of(runs, settings)
    if (plot or bars) and len(comparisons) > 1:
        found = ", ".join(comparison.env for comparison in comparisons)
        raise ConfigError(f"plot: the runs are of {found}; expected one environment: --where '[env=NAME]'")
    exported = for_export(runs) if export is not None else []
    show(comparisons, console, markdown, csv)
    if export is not None:
        write_runs(export, exported)
        console.print(f"written  {export} ({len(runs)} runs)", highlight=False, soft_wrap=True)
    for picture, draw in ((plot, draw_comparison), (bars, draw_bars)):
        if picture is not None:
            draw(comparisons[0], picture, title, lines)


def _refuse_others(given: Mapping[str, Any]) -> None:
    """Refuses what a report would ignore: its manifest says what is compared."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(compare).parameters.items()}
    defaults |= {"sources": [], "report": given["report"]}
    for name, value in given.items():
        if value != defaults[name]:
            raise ConfigError(f"{name} is {value}; expected nothing beside report, whose manifest says all")


def _check_outputs(files: Mapping[str, Path | None]) -> None:
    """Refuses pictures that are none, and two options that write the same file."""
    writers: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        written = [path]
        if option in ("plot", "bars"):
            check_picture(option, path)
            written.append(path.with_suffix(".csv"))
        for file in written:
            other = writers.setdefault(file.resolve(), option)
            if other != option:
                raise ConfigError(f"{option} is {path}; expected another name, since {other} writes {file}, too")


def show(comparisons: Sequence[Comparison], console: Console, markdown: Path | None, csv: Path | None) -> None:
    """Prints the table and the notes, and writes the table to files.

    Args:
        comparisons: at least one.
        console: where it is printed.
        markdown: the table as Markdown; None writes none.
        csv: the table as CSV; None writes none.
    """
    rows, settings = tables.make_rows(comparisons), comparisons[0].settings
    header, body = tables.cells(rows, settings)
    title = f"{settings.metric}, {', '.join(comparison.env for comparison in comparisons)}"
    console.print(tables.rich_table(header, body, title))
    for comparison in comparisons:
        for note in comparison.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(tables.markdown(header, body), encoding="utf-8")
    if csv is not None:
        tables.write_csv(csv, rows)
