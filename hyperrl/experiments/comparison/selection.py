"""The best hyper-parameters of a model: its runs are grouped by what differs, and the groups by a named rule."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from hyperrl.configuration import nearest
from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.curves import Scores
from hyperrl.experiments.comparison.runs import FINISHED, Run, matters

Setting = tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The setting of a model that was chosen.

    Attributes:
        label: of the model.
        over: the hyper-parameters that were chosen from.
        setting: their chosen values.
        runs: the runs with that setting that count.
        scores: the average of the rule over the runs of each setting that could be chosen.
        incomplete: runs of the model that did not take part, or that did for want of better ones, with the reason.
        remarks: what else a reader has to know, as sentences.
    """

    label: str
    over: tuple[str, ...]
    setting: Setting
    runs: tuple[Run, ...]
    scores: dict[Setting, float]
    incomplete: tuple[tuple[Run, str], ...]
    remarks: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all of its runs are."""
        excused = {run.id for run, _ in self.incomplete}
        return not any(run.id in excused for run in self.runs)

    @property
    def name(self) -> str:
        """The chosen values by the last parts of the keys; empty where nothing was to choose."""
        return _name(self.over, self.setting)

    def notes(self, rule: str) -> list[str]:
        """What a reader has to know, as sentences."""
        notes = []
        if len(self.scores) > 1:
            rivals = ", ".join(f"{'/'.join(setting)}: {score:.2f}" for setting, score in self.scores.items())
            notes.append(f"{self.label}: {self.name} chosen by {rule} from {rivals}")
        used = {run.id for run in self.runs}
        for run, reason in self.incomplete:
            fate = "shown, since there is no complete one" if run.id in used else "left out"
            notes.append(f"{self.label}: run {run.id[:8]} (seed {run.seed}) is incomplete ({reason}): {fate}")
        return [*notes, *(f"{self.label}: {remark}" for remark in self.remarks)]


def _name(keys: Sequence[str], setting: Setting) -> str:
    """Values by the last parts of their keys."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in zip(keys, setting, strict=True))


def value(run: Run, key: str) -> str:
    """A setting of a run; where its group is a single value, such as None, that one; empty where neither is known.

    So a setting that older versions did not have yet is no difference to newer runs.
    """
    while key not in run.config and "." in key:
        key = key.rpartition(".")[0]
    return run.config.get(key, "")


def varying(runs: Sequence[Run]) -> tuple[str, ...]:
    """The settings in which runs differ, but for the seed and where things are read from and written to."""
    keys = sorted(set().union(*(run.config for run in runs)))
    return tuple(key for key in keys if matters(key) and len({value(run, key) for run in runs} - {""}) > 1)


def incomplete(runs: Sequence[Run], metric: str) -> dict[str, str]:
    """Why runs of a model cannot be compared with the others, by their ids: not finished, shorter, or not finite.

    Shorter is a run that ends earlier than the longest one by more than its own steps between values.
    """
    longest = max(run.series(metric).frames[-1] for run in runs)
    reasons = {}
    for run in runs:
        frames, values = run.series(metric)
        step = np.diff(frames).max() if len(frames) > 1 else 0
        if not np.isfinite(values).all():
            reasons[run.id] = f"{metric} is not finite"
        elif run.status != FINISHED:
            reasons[run.id] = f"{run.status.lower()}, {frames[-1]:,} frames"
        elif frames[-1] + step < longest:
            reasons[run.id] = f"{frames[-1]:,} of {longest:,} frames"
    return reasons


def choose(
    runs: Sequence[Run],
    scores: Scores,
    metric: str = "val/return",
    over: Sequence[str] | None = None,
    lowest: bool = False,
    seeds: Collection[str] = (),
    all_count: bool = False,
) -> Choice:
    """Chooses the setting with the best average; among equals, the one whose runs come first.

    A setting of which fewer seeds count than of another is no candidate: what is left of it may be its luckiest seeds.
    Of several runs of one setting and seed, one counts: the longest, and among equals the one that comes last.

    Args:
        runs: of one model on one environment.
        scores: the rule.
        metric: what is scored.
        over: the hyper-parameters to choose from; None takes all in which the runs differ.
        lowest: whether the lowest average is the best.
        seeds: seeds of the runs on which the choice rests; then only the others count as its result. Without any, all
            runs serve for both, which is optimistic (quirk P2).
        all_count: whether incomplete runs, and settings with fewer seeds, count like the others, as in the papers.

    Raises:
        ConfigError: nothing is left to choose from, a hyper-parameter is unknown, or no other seed is left.
    """
    reasons = {} if all_count else incomplete(runs, metric)
    # A run stopped by hand may be all there is of a model: better shown with a mark than not at all.
    counting = [run for run in runs if run.id not in reasons] or list(runs)
    found = varying(counting)
    counting, remarks = _one_per_seed(counting, found, metric)
    keys = found if over is None else tuple(over)
    known = set().union(*(run.config for run in runs))
    for key in keys:
        if key not in known:
            raise ConfigError(f"over: {key}: no run has such a setting{nearest(key, known)}")
    groups = _groups(counting, keys)
    judged = {setting: [run for run in group if not seeds or run.seed in seeds] for setting, group in groups.items()}
    judged = {setting: group for setting, group in judged.items() if group}
    label = runs[0].label
    if not judged:
        raise ConfigError(f"choose_on: {' '.join(seeds)}: no complete run of {label} has such a seed")
    if not all_count:
        judged, left = _best_covered(judged, keys)
        remarks += left
    flat = [run for group in judged.values() for run in group]
    by_run = dict(zip([run.id for run in flat], scores([run.series(metric) for run in flat]), strict=True))
    averages = {setting: float(np.mean([by_run[run.id] for run in group])) for setting, group in judged.items()}
    best = min(averages, key=averages.__getitem__) if lowest else max(averages, key=averages.__getitem__)
    result = [run for run in groups[best] if run.seed not in seeds]
    if not result:
        raise ConfigError(f"choose_on: {' '.join(seeds)}: no other seed of {label} is left to report")
    left_out = tuple((run, reasons[run.id]) for run in runs if run.id in reasons)
    if pooled := [key for key in found if key not in keys]:
        remarks.append(f"runs that differ in {', '.join(pooled)} are counted together")
    return Choice(label, keys, best, tuple(result), averages, left_out, tuple(remarks))


def _one_per_seed(runs: Sequence[Run], keys: Sequence[str], metric: str) -> tuple[list[Run], list[str]]:
    """The run of each setting and seed that counts, and a remark on each other one; unknown seeds are all different."""
    longest: dict[tuple[Setting, str], Run] = {}
    for run in runs:
        key = (tuple(value(run, key) for key in keys), run.seed or run.id)
        if key not in longest or run.series(metric).frames[-1] >= longest[key].series(metric).frames[-1]:
            longest[key] = run
    kept = {run.id for run in longest.values()}
    remarks = [
        f"run {run.id[:8]} (seed {run.seed}) is another one of the same setting and seed: left out"
        for run in runs
        if run.id not in kept
    ]
    return [run for run in runs if run.id in kept], remarks


def _best_covered(groups: dict[Setting, list[Run]], keys: Sequence[str]) -> tuple[dict[Setting, list[Run]], list[str]]:
    """The settings with the most runs, and a remark on each other one."""
    most = max(map(len, groups.values()))
    remarks = [
        f"{_name(keys, setting)} is no candidate: {len(group)} of {most} seeds count"
        for setting, group in groups.items()
        if len(group) < most
    ]
    return {setting: group for setting, group in groups.items() if len(group) == most}, remarks


def _groups(runs: Sequence[Run], keys: Sequence[str]) -> dict[Setting, list[Run]]:
    groups: dict[Setting, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(value(run, key) for key in keys), []).append(run)
    return groups
