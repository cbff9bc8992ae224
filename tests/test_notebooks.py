"""Notebooks: each runs through with a tiny budget, and what is committed is small and tells of no machine."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image
from tiny import MODEL_ARGS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
Execute = Callable[..., dict[str, Any]]
BUDGET = (
    "--data.num_envs=4", "--data.frames=480", "--data.rollouts_per_epoch=1", "--data.val_tasks=4",
    "--data.test_tasks=8", *MODEL_ARGS,
)  # fmt: skip


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`notebooks/execute.py`."""
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    return importlib.import_module("execute")


@pytest.fixture
def execute(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Runs a notebook, with nothing of this machine's configuration; returns the values of expressions at its end."""
    monkeypatch.setenv("HYPERRL_NOTEBOOK_BUDGET", " ".join(BUDGET))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)

    def run(name: str, **values: str) -> dict[str, Any]:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        pairs = ", ".join(f"{key!r}: {expression}" for key, expression in values.items())
        notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{pairs}}}))"))
        tool.run_in(tmp_path, notebook)
        printed = "".join(output["text"] for output in notebook.cells[-1].outputs if output.get("name") == "stdout")
        return json.loads(printed)

    return run


def test_quickstart(execute: Execute, tmp_path: Path) -> None:
    found = execute(
        "quickstart",
        frames="learning.frames.tolist()",
        returned="history.last('test/return')",
        adaptation="adaptation",
        played="recording['length'].tolist()",
    )
    assert found["frames"] == [240, 480]
    assert sum(found["adaptation"]) == pytest.approx(found["returned"], abs=1e-4)
    assert -6.01 <= found["returned"] <= 44.3
    assert found["played"] == [60] * 100
    assert (tmp_path / "notebooks" / "meta_episode.png").stat().st_size > 10_000


def test_own_aggregator(execute: Execute, tmp_path: Path) -> None:
    found = execute(
        "own_aggregator",
        classes="[type(cli.model.agent.encoder.aggregator).__name__ for cli in runs.values()]",
        returns="[float(cli.trainer.callback_metrics['test/return']) for cli in runs.values()]",
        moved="(trained.keep - untrained.keep).abs().max().item()",
        ordered="not Fading.permutation_invariant",
    )
    assert found["classes"] == ["Max", "Fading"]
    assert all(-6.01 <= value <= 44.3 for value in found["returns"])
    assert 0 < found["moved"] < 0.1  # it learns
    assert found["ordered"]
    assert (tmp_path / "notebooks" / "aggregators.csv").read_text().count(
        "learning,"
    ) == 4  # two validations of two runs


def test_compare_and_read_weights(execute: Execute, tmp_path: Path) -> None:
    found = execute(
        "compare_and_read_weights",
        latent="list(latent.shape)",
        weights="list(final.shape)",
        parts="{name: list(value.shape) for name, value in generated.items()}",
        start="apart[0].max().item()",
        end="apart[-1].min().item()",
        symmetric="(similarity - similarity.T).abs().max().item()",
        diagonal="similarity.diagonal().tolist()",
        shares="share.sum().item()",
    )
    assert found["latent"] == [21, 61, 10]
    assert found["parts"]["actor/0/weight"] == [21, 8, 8]
    assert found["parts"]["actor/head/bias"] == [21, 5]
    assert found["weights"] == [21, 8 * 8 + 8 + 8 * 5 + 5]
    assert found["start"] < 1e-6  # before the first step, nothing is known of the task
    assert found["end"] > 0
    assert found["symmetric"] < 1e-5
    assert found["diagonal"] == pytest.approx([1.0] * 21, abs=1e-4)
    assert found["shares"] == pytest.approx(1.0, abs=1e-4)
    assert "learning,RNN+HN,5," in (tmp_path / "notebooks" / "memories.csv").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs(path: Path) -> None:
    assert path.stat().st_size < 300_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not executed from top to bottom"
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    for output in outputs:
        assert output.get("name") != "stderr", output["text"]
        text = output.get("text", "") + "".join(
            output.get("data", {}).get(kind, "") for kind in ("text/plain", "text/html")
        )
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users)/", text), text
        assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d,", text), text
    assert not {"execution", "ExecuteTime"} & {key for cell in cells for key in cell.metadata}, "times of execution"


def test_pictures_are_reduced(tool: Any) -> None:
    original = Image.effect_mandelbrot((200, 200), (-2.0, -1.5, 1.0, 1.5), 100)
    original = Image.merge("RGBA", [original.rotate(angle) for angle in (0, 90, 180)] + [original.point(lambda _: 255)])
    file = io.BytesIO()
    original.save(file, "PNG")
    reduced = base64.b64decode(tool.reduce_colours(base64.b64encode(file.getvalue()).decode()))
    picture = Image.open(io.BytesIO(reduced))
    assert picture.size == original.size
    assert len(original.getcolors(40_000)) > 256 >= len(picture.convert("RGB").getcolors())
    assert len(reduced) < len(file.getvalue()) / 2
