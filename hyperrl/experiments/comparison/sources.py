"""Where runs come from: files of exported runs, directories of runs, and experiments of MLflow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hyperrl import configuration
from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.runs import FINISHED, KEPT, THINNED, Run, make_series, read_runs, tag_filter
from hyperrl.outbox import connect, reached, without_password
from hyperrl.run_tags import config_tags, flatten

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

DEFAULT_EXPERIMENT = "hyperrl"
DEFAULT_STORE = Path("runs", "mlflow.db")
_PAGE = 1000

Filter = Callable[[Mapping[str, str]], bool]


def find_runs(sources: Iterable[str], where: Iterable[str] = (), tracking_uri: str | None = None) -> list[Run]:
    """Reads runs.

    Args:
        sources: each `[LABEL=]WHAT`, where WHAT is a file of exported runs (.csv), a directory with runs in it, or the
            name of an MLflow experiment; without any, the experiment `hyperrl`.
        where: conditions on tags, each `TAG=VALUE`.
        tracking_uri: MLflow's; None takes MLFLOW_TRACKING_URI or, without it, `runs/mlflow.db`.

    Raises:
        ConfigError: a source does not exist, or no run is left.
        TrackingError: the MLflow server or store cannot be used.
    """
    sources, where = list(sources) or [DEFAULT_EXPERIMENT], list(where)
    wanted = tag_filter(where)
    runs: dict[tuple[str, str], Run] = {}  # by label and id: a run may stand under two labels, but not twice under one
    for source in sources:
        label, what = split_source(source)
        found = [run.labelled(label) for run in _read(what, wanted, tracking_uri)]
        if not found:
            raise ConfigError(f"{source}: no run{' with ' + ', '.join(where) if where else ''} there")
        runs |= {(run.label, run.full_id): run for run in found}
    return list(runs.values())


def split_source(source: str, root: Path = Path()) -> tuple[str, str]:
    """Label and WHAT of `[LABEL=]WHAT`; both may hold a `=`, so the longest WHAT that is a file or directory counts.

    Args:
        source: with a label or without.
        root: where relative paths start.
    """
    parts = source.split("=")
    for cut in range(len(parts)):
        if (what := "=".join(parts[cut:])) and (root / what).exists():
            return "=".join(parts[:cut]), what
    return "=".join(parts[:-1]), parts[-1]


def _read(what: str, wanted: Filter, tracking_uri: str | None) -> list[Run]:
    path = Path(what)
    if path.suffix == ".csv":
        found = read_runs(path)
    # A directory without runs may have the name of an experiment, as the package has in the repository.
    elif files := sorted(path.rglob("metrics.jsonl")):
        found = [read_directory(file.parent) for file in files]
    else:
        return read_experiment(what, wanted, tracking_uri)
    return [run for run in found if wanted(run.tags)]


def read_directory(directory: Path) -> Run:
    """Reads the directory of a run: `metrics.jsonl` and `config.yaml`. It does not hold the commit and the versions.

    A last line that is not finished yet, or that a kill has cut off, is left out.

    Raises:
        ConfigError: one of the files is missing or broken.
    """
    for name in ("config.yaml", "metrics.jsonl"):
        if not (directory / name).is_file():
            raise ConfigError(f"{directory}: no {name} there; expected the directory of a run")
    config = read_yaml(directory / "config.yaml")
    if not isinstance(config, dict):
        raise ConfigError(
            f"{directory / 'config.yaml'} holds {str(config)[:60]!r}; expected the configuration of a run"
        )
    flat = flatten(config)
    points: dict[str, dict[int, float]] = {}
    frames = 0
    path = directory / "metrics.jsonl"
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            frames = max(frames, record["step"])
            for name, value in record["metrics"].items():
                points.setdefault(name, {})[record["step"]] = float(value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}, line {number}: {line[:80]!r} is no line of metrics") from error
    budget = flat.get("data.frames", "")
    status = FINISHED if budget.isdigit() and frames >= int(budget) else "UNFINISHED"
    tags = {**config_tags(config), "model": configuration.model_name(config), "status": status}
    return Run(directory.name, tags, flat, {name: make_series(values) for name, values in points.items()})


def read_yaml(path: Path) -> Any:
    """Reads a YAML file.

    Raises:
        ConfigError: it is none.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no YAML file: {' '.join(str(error).split())}") from error


def read_experiment(name: str, wanted: Filter = lambda tags: True, tracking_uri: str | None = None) -> list[Run]:
    """Reads the runs of an MLflow experiment, oldest first.

    Args:
        name: of the experiment.
        wanted: by their tags, which runs are read.
        tracking_uri: None takes MLFLOW_TRACKING_URI or, without it, `runs/mlflow.db`.

    Raises:
        ConfigError: there is no such experiment, directory or file.
        TrackingError: the MLflow server or store cannot be used.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DEFAULT_STORE.absolute()}"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ConfigError(
            f"{name}: no file or directory with runs, and no MLflow store at {uri} to look for an experiment"
        )
    with reached(uri):
        client = connect(uri)
        experiments = {experiment.name: experiment.experiment_id for experiment in client.search_experiments()}
    if name not in experiments:
        hint = configuration.nearest(name, experiments)
        raise ConfigError(f"{name}: no file or directory with runs, and no experiment at {without_password(uri)}{hint}")
    with reached(uri):
        found = _search(client, experiments[name])
        return [_from_mlflow(client, run) for run in found if wanted(_tags(run))]


def _search(client: MlflowClient, experiment: str) -> list[MlflowRun]:
    """All runs of an experiment that are not deleted, page by page."""
    found: list[MlflowRun] = []
    token: str | None = None
    while token is None or token:
        page = client.search_runs([experiment], max_results=_PAGE, order_by=["start_time ASC"], page_token=token)
        found, token = found + list(page), page.token or ""
    return found


def _tags(run: MlflowRun) -> dict[str, str]:
    """The run's own tags, without MLflow's, which tell of users and paths."""
    tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
    return {"name": run.info.run_name or "", "status": run.info.status, **tags}


def _from_mlflow(client: MlflowClient, run: MlflowRun) -> Run:
    names = [name for name in run.data.metrics if name.startswith(KEPT) or name in THINNED]
    history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    metrics = {name: make_series({point.step: point.value for point in points}) for name, points in history.items()}
    tags = _tags(run)
    # The tags are parameters, too, for MLflow's charts.
    config = {name: value for name, value in run.data.params.items() if "." in name or name not in tags}
    return Run(run.info.run_id, tags, config, metrics)
