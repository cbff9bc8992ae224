"""The trained agents of examples/ play as well as their page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hyperrl.experiments.behaviour.command import play, video

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PAGE = (EXAMPLES / "README.md").read_text()
RETURNS = {
    name: (float(mean), float(error))
    for name, mean, error in re.findall(r"^\| `(\w+)` \|.*\| (-?[\d.]+) ± ([\d.]+) \|", PAGE, re.MULTILINE)
}
TASKS = 64


def test_every_example_is_on_the_page() -> None:
    assert set(RETURNS) == {path.name for path in EXAMPLES.iterdir() if path.is_dir()}


@pytest.mark.parametrize("name", RETURNS)
def test_plays_as_well_as_the_page_says(name: str) -> None:
    """On few fresh tasks, within three standard errors of so few."""
    mean, error = RETURNS[name]
    recording = play(str(EXAMPLES / name), tasks=TASKS, seed=1)
    played = recording.returns.sum(1).mean()
    assert played == pytest.approx(mean, abs=0.01 + 3 * error * (1024 / TASKS) ** 0.5)


def test_is_drawn(tmp_path: Path) -> None:
    outputs = [tmp_path / "film.gif", tmp_path / "picture.png"]
    video(str(EXAMPLES / "t_ln_p1_fast"), [str(output) for output in outputs], tasks=2)
    assert all(output.stat().st_size > 10_000 for output in outputs)


@pytest.mark.parametrize("code", re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL))
def test_code_of_the_page_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["action"].shape == (8,)  # type: ignore[attr-defined]
