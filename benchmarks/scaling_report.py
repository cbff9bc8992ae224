"""What `scaling.py` measured beside what the cost model says: CSV, figure, the tables of docs/scaling.md."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cost_model
from cost_model import Efficiency, Machine, Setting, Term
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from model_sizes import Kernels, Sizes

from hyperrl.errors import ConfigError
from hyperrl.experiments.comparison.report import fill
from hyperrl.experiments.comparison.tables import markdown

MIB = 2**20
X_LABELS = {
    "environments": "environments",
    "horizon": "horizon, steps of a task and of a rollout",
    "latent": "width of the latent's mean",
    "hypernetwork": "parameters of the policy",
}
X_COLUMNS = {"environments": "environments", "horizon": "steps", "latent": "latent", "hypernetwork": "parameters"}
# Okabe and Ito's colours; markers tell the series apart in grey.
SERIES = {"RNN+HN": ("#0072B2", "o"), "RNN+HN, condition": ("#0072B2", "o"), "RNN+HN, layers": ("#D55E00", "s"),
          "SplAgger": ("#009E73", "^")}  # fmt: skip

# Datasheet of the H100 SXM: dense bf16 and plain fp32 (memory computes in it, not in TF32), HBM3, NVLink per direction,
# 400 Gb/s InfiniBand. Assumed: 5 microseconds per launch, and 16 cores of the host for each GPU.
H100 = Machine("one H100", fp32=67e12, low=989e12, bandwidth=3.35e12, latency=5e-6, cudnn=True)
NVLINK, INFINIBAND = 450e9, 50e9
HOST_CORES = 16
CLUSTERS = (
    H100,
    H100._replace(name="eight H100", processes=8, link=NVLINK),
    H100._replace(name="64 H100", processes=64, link=INFINIBAND),
)
H100_MEMORY = 80e9


class Row(NamedTuple):
    """A measured point beside its model; rates per second, memory in MiB."""

    group: str
    series: str
    model: str
    environments: int
    steps: int
    latent: int
    condition: int
    layers: str
    parameters: int
    frames_per_second: float
    at_most: float
    share: float
    bound_by: str
    acting: float
    update: float
    mflop_per_frame: float
    mflop_modelled: float
    gflops: float
    gemm_gflops: float
    peak_mib: float
    modelled_mib: float


def write_report(report: Mapping[str, Any], groups: Mapping[str, Sequence[str]], root: Path) -> list[Path]:
    """Writes everything, and returns the files."""
    rows = make_rows(report, groups)
    if not rows:
        raise ConfigError("--report: expected measured points, but the JSON has none")
    numbers, picture, page = (
        root / "results" / "speed_scaling.csv",
        root / "docs" / "figures" / "scaling.png",
        root / "docs" / "scaling.md",
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    for path in (numbers, picture.with_suffix(".csv")):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(path, rows)
    draw(rows, picture)
    page.write_text(fill(page.read_text(encoding="utf-8"), make_tables(report, rows)), encoding="utf-8")
    return [numbers, picture, picture.with_suffix(".csv"), page]


def make_rows(report: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> list[Row]:
    """A row for each measured point of each group."""
    points = report["points"]
    return [
        make_row(group, points[name], report["machine"]) for group, names in groups.items() for name in names
        if name in points
    ]  # fmt: skip


def make_row(group: str, point: Mapping[str, Any], machine: Mapping[str, float]) -> Row:
    """One point beside its floor."""
    sizes, kernels, setting = Sizes.read(point["sizes"]), Kernels(**point["kernels"]), point_setting(point)
    terms = cost_model.floor(sizes, kernels, setting, point_machine(point, machine))
    numbers, slowest = point["numbers"], cost_model.binding(terms)
    at_most = cost_model.frames_per_second(terms, setting)
    memory = machine["process_mib"] + cost_model.memory_bytes(sizes, setting) / MIB
    varied = "condition" if tuple(point["layers"]) == (256, 128) else "layers"
    series = f"{point['model']}, {varied}" if group == "hypernetwork" else point["model"]
    return Row(
        group=group,
        series=series,
        model=point["model"],
        environments=point["num_envs"],
        steps=point["steps"],
        latent=point["latent_dim"],
        condition=point["condition"],
        layers="-".join(map(str, point["layers"])),
        parameters=sizes.policy_parameters,
        frames_per_second=numbers["frames_per_second"],
        at_most=at_most,
        share=numbers["frames_per_second"] / at_most,
        bound_by=f"{slowest.phase}: {slowest.resource}",
        acting=numbers["share_acting"] + numbers["share_environment"],
        update=numbers["share_update"],
        mflop_per_frame=1e3 * numbers["gflops"] / numbers["frames_per_second"],
        mflop_modelled=cost_model.rollout_work(sizes, setting).total / setting.frames / 1e6,
        gflops=numbers["gflops"],
        gemm_gflops=point["gemm_gflops"]["bf16"],
        peak_mib=math.nan if numbers["peak_mib"] is None else numbers["peak_mib"],
        modelled_mib=memory,
    )


def point_setting(point: Mapping[str, Any]) -> Setting:
    """How a point was trained. It shares products by the rule of `hyperrl.modules.policy.Policy.update_statistics`."""
    setting = Setting(point["num_envs"], point["steps"], low_bytes=2)
    acting, minibatch, rollout = point["distinct"]
    if rollout > min(setting.frames, point["sizes"]["state_dim"]) // 4:
        return setting
    return replace(setting, distinct=minibatch, values_distinct=rollout, acting_distinct=acting)


def point_machine(point: Mapping[str, Any], machine: Mapping[str, float]) -> Machine:
    """This machine as it was when a point was measured: products are timed in the point's own process."""
    rates = {name: 1e9 * rate for name, rate in point["gemm_gflops"].items()}
    return Machine("here", rates["fp32"], rates["bf16"], machine["bandwidth"], machine["latency"])


# The projection


class Projection(NamedTuple):
    """What the model predicts."""

    case: str
    machine: str
    at_most: float
    predicted: float
    slowest: Term
    share: float
    memory: float


def project(report: Mapping[str, Any], rows: Sequence[Row]) -> list[Projection]:
    """Every case on every machine, at the efficiency measured with most and fewest environments of the same model.

    Cases whose model was not measured are left out.
    """
    result = []
    for case, stored in report["projected"].items():
        sizes, kernels = Sizes.read(stored["sizes"]), Kernels(**stored["kernels"])
        setting = Setting(stored["num_envs"], stored["steps"], low_bytes=2, own_gru=False)
        alike = [row for row in rows if row.model == case.rpartition(", ")[2]]
        if not alike:
            continue
        by_size = sorted(alike, key=lambda row: row.environments)
        efficiency = Efficiency(by_size[-1].share, by_size[0].share)
        for machine in CLUSTERS:
            if stored["core_steps"] is not None:
                machine = machine._replace(host_steps=HOST_CORES * stored["core_steps"])
            result.append(_project(case, sizes, kernels, setting, machine, efficiency))
    return result


def _project(
    case: str, sizes: Sizes, kernels: Kernels, setting: Setting, machine: Machine, efficiency: Efficiency
) -> Projection:
    best, terms = (cost_model.predict(sizes, kernels, setting, machine, share) for share in (Efficiency(), efficiency))
    slowest = cost_model.binding(terms)
    return Projection(
        case,
        machine.name,
        cost_model.frames_per_second(best, setting, machine.processes),
        cost_model.frames_per_second(terms, setting, machine.processes),
        slowest,
        slowest.seconds / sum(term.seconds for term in terms),
        cost_model.memory_bytes(sizes, setting),
    )


# Tables


def make_tables(report: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """The tables of docs/scaling.md by name."""
    tables = {f"scaling_{group}": _group_table(group, rows) for group in X_COLUMNS}
    return tables | {"scaling_machine": _machine_table(report), "scaling_projection": _projection_table(report, rows)}


def _group_table(group: str, rows: Sequence[Row]) -> str:
    own = [row for row in rows if row.group == group]
    named = {
        "environments": ["environments"],
        "horizon": ["model", "environments", "steps"],
        "latent": ["latent"],
        "hypernetwork": ["condition", "layers", "parameters"],
    }[group]
    header = [*named, "frames/s", "at most", "share", "bound by", "acting", "update", "MFLOP per frame", "modelled",
              "GFLOP/s", "peak, MiB", "modelled, MiB"]  # fmt: skip
    lines = [
        [
            *(_cell(getattr(row, name)) for name in named),
            _cell(row.frames_per_second),
            _cell(row.at_most),
            f"{row.share:.2f}",
            row.bound_by,
            f"{row.acting:.0%}",
            f"{row.update:.0%}",
            f"{row.mflop_per_frame:.1f}",
            f"{row.mflop_modelled:.1f}",
            _cell(row.gflops),
            _cell(row.peak_mib),
            _cell(row.modelled_mib),
        ]
        for row in own
    ]
    return markdown(header, lines)


def _cell(value: object) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "-"  # not measured
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _machine_table(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    gemm = [point["gemm_gflops"] for point in report["points"].values()]
    fp32, bf16 = (sorted(rates[name] for rates in gemm) for name in ("fp32", "bf16"))
    lines = [
        ["processor", f"{machine['cpu']}, {machine['cores']} cores"],
        ["date, commit", f"{machine['date']}, {machine['commit']}"],
        ["large product in fp32, GFLOP/s, over all points", f"{fp32[0]:,.0f} to {fp32[-1]:,.0f}"],
        ["large product in bf16, GFLOP/s, over all points", f"{bf16[0]:,.0f} to {bf16[-1]:,.0f}"],
        ["memory, GB/s (copy of 256 MiB, read and written)", f"{machine['bandwidth'] / 1e9:.1f}"],
        ["an operation on one number, microseconds", f"{1e6 * machine['latency']:.2f}"],
        ["memory of a process that trains next to nothing, MiB", _cell(machine["process_mib"])],
    ]
    for case, stored in report["projected"].items():
        if stored["core_steps"] is not None:
            lines.append([f"physics of {case}, steps/s for each core", _cell(stored["core_steps"])])
    return markdown(["what", "measured"], lines)


def _projection_table(report: Mapping[str, Any], rows: Sequence[Row]) -> str:
    header = ["case", "machine", "at most, frames/s", "predicted, frames/s", "binds first", "its share", "memory, GB"]
    lines = [
        [
            each.case,
            each.machine,
            f"{float(f'{each.at_most:.2g}'):,.0f}",
            f"{float(f'{each.predicted:.2g}'):,.0f}",
            f"{each.slowest.phase}: {each.slowest.resource}",
            f"{each.share:.0%}",
            f"{each.memory / 1e9:.1f}" + (" (too much)" if each.memory > H100_MEMORY else ""),
        ]
        for each in project(report, rows)
    ]
    return markdown(header, lines)


# Files


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All numbers, four digits; empty where nothing was measured."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([_digits(cell) for cell in row] for row in rows)


def _digits(cell: object) -> object:
    if isinstance(cell, float):
        return "" if math.isnan(cell) else f"{cell:.4g}"
    return cell


def draw(rows: Sequence[Row], path: Path) -> None:
    """Speed above and memory below, one column per group: what was measured, and what the model says."""
    figure = Figure(figsize=(15, 6.6), layout="constrained")
    panels = figure.subplots(2, len(X_COLUMNS), squeeze=False, sharex="col", sharey="row")
    for column, group in enumerate(X_COLUMNS):
        own = [row for row in rows if row.group == group]
        for series in dict.fromkeys(row.series for row in own):
            line = sorted((row for row in own if row.series == series), key=lambda row: getattr(row, X_COLUMNS[group]))
            _lines(panels[0][column], group, series, line, "frames_per_second", "at_most")
            _lines(panels[1][column], group, series, line, "peak_mib", "modelled_mib")
        panels[0][column].set(title=group)
        panels[1][column].set(xlabel=X_LABELS[group])
        for axes, model in ((panels[0][column], "at most (cost model)"), (panels[1][column], "cost model")):
            axes.plot([], [], color="0.3", linestyle="--", label=model)
            _log_axes(axes, sorted({getattr(row, X_COLUMNS[group]) for row in own}))
            axes.legend(fontsize=8)
    for axes, label in zip(panels[:, 0], ("frames/s", "peak memory, MiB"), strict=True):
        low, high = axes.get_ylim()
        axes.set(ylabel=label, ylim=(low / 1.2, high * 2))  # room for the legends
    figure.savefig(path, dpi=110)


def _log_axes(axes: Axes, x: Sequence[int]) -> None:
    """Logarithmic, with plain numbers: the measured ones below, as far as there is room for them."""
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5, 7)), minor_locator=NullLocator())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set(minor_locator=NullLocator())
    if max(x, default=0) < 1e6:
        axes.set_xticks(x, [f"{value:,}" for value in x], rotation=30)
    else:
        axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=EngFormatter())
    axes.grid(alpha=0.3)


def _lines(axes: Axes, group: str, series: str, rows: Sequence[Row], measured: str, modelled: str) -> None:
    color, marker = SERIES[series]
    x = [getattr(row, X_COLUMNS[group]) for row in rows]
    axes.plot(x, [getattr(row, measured) for row in rows], color=color, marker=marker, label=f"{series}, measured")
    axes.plot(x, [getattr(row, modelled) for row in rows], color=color, marker=marker, markersize=3, linestyle="--")
