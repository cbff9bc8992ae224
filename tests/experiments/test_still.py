"""Pictures of recorded meta-episodes: their panels, borders and numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from matplotlib.figure import Figure
from tiny import TOY

from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import load_agent, telling_env
from hyperrl.experiments.behaviour.recorder import record
from hyperrl.experiments.behaviour.recording import Recording
from hyperrl.experiments.behaviour.still import _entropy, draw_still

# Id, options, number of panels that show places.
FAMILIES: list[tuple[str, dict[str, Any], int]] = [
    ("GridNavi-v0", {"num_steps": 6}, 12),
    ("Hall-L60H80-rshape-v0", {"num_steps": 6, "episodes_per_task": 3}, 3),
    ("PlanningGame-3x3-v0", {"max_episode_steps": 12}, 4),
    ("SparsePointEnv-v0", {"max_episode_steps": 6, "episodes_per_task": 9}, 6),
    ("AntGoal-v0", {"episode_length": 6}, 2),
    ("MC-LS-v0", {}, 2),
    ("HalfCheetahDir-v0", {"episode_length": 6}, 2),
    ("T-LN-P1-v0", {"maze_length": 5, "episodes_per_task": 2}, 1),
    (TOY, {}, 0),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved; drawing the pixels takes most of the time."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kwargs: figures.append(self))
    return figures


def labels(figure: Figure) -> list[str]:
    return [axes.get_ylabel().replace("\n", " ") for axes in figure.axes]


def borders(figure: Figure, label: str) -> list[float]:
    """Where dashed lines stand in the panel with that label."""
    axes = figure.axes[labels(figure).index(label)]
    return [
        line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1 and line.get_linestyle() == "--"
    ]


def of_agent(folder: Path, name: str, tasks: int = 3) -> Recording:
    agent = load_agent(write_checkpoint(folder / "agent.ckpt", name))
    return record(agent.make_env(tasks, seed=1), agent.learner, about={"player": name, "env": agent.data.env_id})


@pytest.mark.parametrize(("env_id", "options", "places"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_every_family_has_a_picture(
    env_id: str, options: dict[str, Any], places: int, drawn: list[Figure], tmp_path: Path
) -> None:
    recording = record(telling_env(env_id, 1, seed=2, **options), seed=1)
    draw_still(recording, tmp_path / "new" / "still.png")
    found = labels(drawn[0])
    over_time = {
        "reward",
        "return",
        "entropy of the belief (nats)",
        "exact belief",
        "visits (at stars: goals collected)",
    }
    assert len([label for label in found if label not in over_time]) == places
    assert "reward" in found
    assert ("return" in found) == (recording.info["episodes_per_task"] > 1)
    expected = [steps.stop for steps in recording.episodes(0)[:-1]]
    assert borders(drawn[0], "reward") == expected


@pytest.mark.parametrize(
    ("name", "known", "unknown"),
    [
        ("rnn_hn", ["latent"], ["variance of the latent", "predicted probability of the reward"]),
        ("vi_hn", ["mean of the latent", "variance of the latent", "predicted probability of the reward"], ["latent"]),
        ("belief oracle", ["exact belief"], ["latent", "mean of the latent"]),
    ],
)
def test_what_is_known_is_drawn(
    name: str, known: list[str], unknown: list[str], drawn: list[Figure], tmp_path: Path
) -> None:
    """Numbers that are no variance are not drawn as such (quirk V5)."""
    draw_still(of_agent(tmp_path, name), tmp_path / "still.png")
    found = labels(drawn[0])
    assert {*known, "reward", "value (discounted return)", "return"} <= set(found)
    assert not set(unknown) & set(found)


def test_borders_are_those_of_the_drawn_task(drawn: list[Figure], tmp_path: Path) -> None:
    """Quirk V2: tasks differ."""
    recording = of_agent(tmp_path, "rnn_hn continuous", tasks=8)
    ends = [recording.episodes(index)[0].stop for index in range(8)]
    assert len(set(ends)) > 1
    for index in (ends.index(min(ends)), ends.index(max(ends))):
        draw_still(recording, tmp_path / "still.png", index)
        assert borders(drawn[-1], "latent") == [ends[index]]


def test_bars_are_means_over_tasks(drawn: list[Figure], tmp_path: Path) -> None:
    recording = of_agent(tmp_path, "rnn_hn continuous", tasks=8)
    draw_still(recording, tmp_path / "still.png", 3)
    axes = drawn[0].axes[labels(drawn[0]).index("return")]
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, recording.returns.mean(0))
    marks = next(line for line in axes.lines if line.get_marker() == "D")
    np.testing.assert_allclose(marks.get_ydata(), recording.returns[3])


def test_entropy_is_that_of_probabilities() -> None:
    """Quirk V4."""
    beliefs = np.array([[0.25] * 4, [0.5, 0.5, 0, 0], [0, 1, 0, 0], [2.0] * 4])
    np.testing.assert_allclose(_entropy(beliefs), [np.log(4), np.log(2), 0, np.log(4)], atol=1e-9)


def test_numbers_beside_the_picture(drawn: list[Figure], tmp_path: Path) -> None:
    recording = of_agent(tmp_path, "rnn_hn continuous", tasks=4)
    draw_still(recording, tmp_path / "still.png", 2)
    with (tmp_path / "still.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == recording["length"][2]
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    for name, expected in (
        ("reward", recording["reward"][2]),
        ("action_1", recording["action"][2, :, 1]),
        ("latent_3", recording["latent"][2, :, 3]),
        ("success", recording["success"][2]),
    ):
        np.testing.assert_allclose([float(row[name]) for row in rows], expected[: len(rows)], rtol=1e-5)
    assert [int(row["episode"]) for row in rows].count(1) == recording.episodes(2)[0].stop
    with (tmp_path / "still_returns.csv").open() as file:
        table = list(csv.DictReader(file))
    np.testing.assert_allclose([float(row["return"]) for row in table], recording.returns.ravel(), rtol=1e-5)
    assert [(row["task"], row["episode"]) for row in table[:3]] == [("0", "1"), ("0", "2"), ("1", "1")]


def test_task_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="index is 3; expected a number from 0 to 2"):
        draw_still(of_agent(tmp_path, "rnn_hn"), tmp_path / "still.png", 3)
