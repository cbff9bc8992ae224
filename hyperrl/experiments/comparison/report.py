"""A document whose tables and pictures come from files of runs, all rewritten from one manifest."""

from __future__ import annotations

import csv
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperrl.configuration import nearest
from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.comparison import Comparison, Settings
from hyperrl.experiments.comparison.figures import check_picture, draw_bars, draw_comparison
from hyperrl.experiments.comparison.runs import Run, Series, number
from hyperrl.experiments.comparison.sources import find_runs, read_yaml, split_source
from hyperrl.experiments.comparison.tables import cells, make_rows, markdown

MARKED = re.compile(r"(<!-- table (?P<name>\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)
KINDS: dict[str, Callable[..., None]] = {"curves": draw_comparison, "bars": draw_bars}


def write_report(manifest: Path) -> list[Path]:
    """Draws the pictures of a manifest and rewrites the tables of its document in place.

    Paths in a manifest start at its directory. Its parts are described in docs/comparison.md.

    Args:
        manifest: YAML file.

    Returns:
        The files that were written.

    Raises:
        ConfigError: the manifest, or a file that it names, is not as it has to be.
    """
    if not manifest.is_file():
        raise ConfigError(f"report: {manifest}: no such file; expected a manifest such as results/report.yaml")
    content = read_yaml(manifest)
    _check("manifest", content, {"pictures", "tables"}, {"document"})
    root = manifest.parent
    document = root / _text("document", content["document"])
    if not document.is_file():
        raise ConfigError(f"document: {document}: no such file; expected the page whose tables are rewritten")
    tables = {name: _table(root, name, entry) for name, entry in _mapping("tables", content.get("tables")).items()}
    rewritten = fill(document.read_text(encoding="utf-8"), tables)
    drawings = [_drawing(root, entry) for entry in _list("pictures", content.get("pictures"))]
    pictures = [draw() for draw in drawings]
    document.write_text(rewritten, encoding="utf-8")
    return [*pictures, document.resolve()]


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Puts tables between their marks, `<!-- table NAME -->` and `<!-- /table -->`.

    Raises:
        ConfigError: a table has no mark, or a mark no table.
    """
    marks = [match["name"] for match in MARKED.finditer(text)]
    for name in [*tables, *marks]:
        if marks.count(name) != 1 or name not in tables:
            where = (
                f"{marks.count(name)} marks in the document, {'one' if name in tables else 'no'} table in the manifest"
            )
            raise ConfigError(
                f"tables: {name} has {where}; expected one of each{nearest(name, {*tables, *marks} - {name})}"
            )
    return MARKED.sub(lambda match: f"{match[1]}\n{tables[match['name']]}\n{match[3]}", text)


def _check(where: str, entry: Any, optional: Iterable[str], required: Iterable[str] = ()) -> None:
    """Refuses keys that nobody reads, and misses those without which nothing goes."""
    known = {*optional, *required}
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {str(entry)[:60]!r}; expected keys out of {', '.join(sorted(known))}")
    for key in entry:
        if key not in known:
            raise ConfigError(f"{where}: {key}: expected one of {', '.join(sorted(known))}{nearest(str(key), known)}")
    for key in required:
        if key not in entry:
            raise ConfigError(f"{where}: {key} is missing")


def _mapping(where: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict | None):
        raise ConfigError(f"{where} is {str(entry)[:60]!r}; expected names with values")
    return {str(name): value for name, value in (entry or {}).items()}


def _list(where: str, entry: Any) -> list[Any]:
    if not isinstance(entry, list | None):
        raise ConfigError(f"{where} is {str(entry)[:60]!r}; expected a list")
    return entry or []


def _text(where: str, entry: Any) -> str:
    if not isinstance(entry, str):
        raise ConfigError(f"{where} is {str(entry)[:60]!r}; expected text")
    return entry


def _runs(root: Path, entry: Mapping[str, Any]) -> list[Run]:
    """The runs of an entry; `labels` chooses among them, in its order."""
    sources = [split_source(_text("sources", source), root) for source in _list("sources", entry["sources"])]
    if not sources:
        raise ConfigError("sources: none; expected files of runs")
    runs = find_runs(f"{label}={root / what}" if label else str(root / what) for label, what in sources)
    labels = [str(label) for label in _list("labels", entry.get("labels"))]
    if not labels:
        return runs
    known = {run.label for run in runs}
    for label in labels:
        if label not in known:
            raise ConfigError(f"labels: {label}: expected one of {', '.join(sorted(known))}{nearest(label, known)}")
    return [run for label in labels for run in runs if run.label == label]


def _comparisons(root: Path, entry: Mapping[str, Any]) -> list[Comparison]:
    settings = _mapping("settings", entry.get("settings"))
    _check("settings", settings, Settings.__dataclass_fields__)
    return Comparison.of(_runs(root, entry), Settings(**settings))


def _drawing(root: Path, entry: Mapping[str, Any]) -> Callable[[], Path]:
    """What draws a picture and returns its path; all that may be wrong is found before."""
    _check("pictures", entry, {"kind", "labels", "settings", "title", "players"}, {"file", "sources"})
    kind = entry.get("kind", "curves")
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind}; expected one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    comparisons = _comparisons(root, entry)
    if len(comparisons) > 1:
        raise ConfigError(f"pictures: {entry['file']} has runs of several environments; expected one")
    path = (root / _text("file", entry["file"])).resolve()
    check_picture("file", path)
    players = _mapping("players", entry.get("players"))
    lines = {name: number(f"players: {name}", value) for name, value in players.items()}

    def draw() -> Path:
        KINDS[kind](comparisons[0], path, str(entry.get("title", "")), lines)
        return path

    return draw


def _table(root: Path, name: str, entry: Any) -> str:
    """A table as Markdown: a CSV file as it is, one line per run, or a comparison."""
    if isinstance(entry, str):
        path = root / entry
        if not path.is_file():
            raise ConfigError(f"tables: {name}: {path}: no such file")
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        return markdown(header, lines)
    _check(f"tables: {name}", entry, {"labels", "columns", "settings"}, {"sources"})
    if "columns" in entry:
        columns = _mapping("columns", entry["columns"])
        return markdown(list(columns), lines_of_runs(_runs(root, entry), [str(cell) for cell in columns.values()]))
    comparisons = _comparisons(root, entry)
    return markdown(*cells(make_rows(comparisons), comparisons[0].settings))


def lines_of_runs(runs: Sequence[Run], templates: Sequence[str]) -> list[list[str]]:
    """One line per run, the seeds of a setting beside each other.

    Args:
        runs: the runs.
        templates: what stands in each column, such as `{label}` or `{test/return:.2f}`; names are those of settings,
            tags and metrics (the newest value), `best/METRIC` (the highest one), `reached/LEVEL/METRIC` (the frames at
            which it was first that high), `label`, and `frames` (at the last validation). Where a run lacks one of
            them, the cell is empty.

    Raises:
        ConfigError: a name is unknown to all runs.
    """
    runs = _seeds_together(runs)
    names = [name for text in templates for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    fields = [_fields(run) for run in runs]
    known = set().union(*fields)
    for name in names:
        level, metric = _level(name)
        if (name if level is None else metric) not in known:
            raise ConfigError(f"columns: {{{name}}}: no run has it{nearest(name, known)}")
        for run, of in zip(runs, fields, strict=True):
            if level is not None and metric in run.metrics:
                of |= _reached(run.metrics[metric], level, name)
    return [[_cell(template, of) for template in templates] for of in fields]


def _seeds_together(runs: Sequence[Run]) -> list[Run]:
    """Runs sorted by seed within each group of runs that differ in nothing else; groups in the order of their first."""
    names = [(run.env, run.label, run.tags.get("group")) for run in runs]
    places = {name: index for index, name in enumerate(dict.fromkeys(names))}
    order = sorted(range(len(runs)), key=lambda i: (places[names[i]], len(runs[i].seed), runs[i].seed))
    return [runs[index] for index in order]


def _fields(run: Run) -> dict[str, Any]:
    fields: dict[str, Any] = {**run.config, **run.tags, "label": run.label}
    for name, series in run.metrics.items():
        fields |= {name: float(series.values[-1]), f"best/{name}": float(series.values.max())}
    if "val/return" in run.metrics:
        fields["frames"] = int(run.metrics["val/return"].frames[-1])
    return fields


def _level(name: str) -> tuple[float | None, str]:
    """Level and metric of a column `reached/LEVEL/METRIC`; no level for all others."""
    kind, _, rest = name.partition("/")
    if kind != "reached":
        return None, name
    level, _, metric = rest.partition("/")
    try:
        return float(level), metric
    except ValueError as error:
        raise ConfigError(f"columns: {{{name}}}: expected reached/LEVEL/METRIC, as reached/30/val/return") from error


def _reached(series: Series, level: float, name: str) -> dict[str, int]:
    """The frames at which a metric first was that high, if ever."""
    frames = series.frames[series.values >= level]
    return {name: int(frames[0])} if len(frames) else {}


class _Names(string.Formatter):
    """Takes names as they are: a point in one is no attribute."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return kwargs[field_name], field_name


def _cell(template: str, fields: Mapping[str, Any]) -> str:
    try:
        return _Names().vformat(template, (), fields)
    except KeyError:
        return ""
