"""Bundles hold the whole agent, and their program acts as it does, or is refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from test_agents import follow

from hyperrl.errors import ConfigError
from hyperrl.experiments import export as module
from hyperrl.experiments.agents import TrainedAgent, load_agent
from hyperrl.experiments.export import TOLERANCE, compare, export, export_step

FILES = {"weights.pt", "config.yaml", "step.pt2", "README.md"}
NAMES = ["rnn_hn continuous", "splagger", "vi_hn continuous", "pearl"]


@pytest.mark.parametrize("name", NAMES)
def test_bundle_acts_as_the_checkpoint(name: str, tmp_path: Path) -> None:
    """Loaded by HyperRL, and its program by PyTorch alone, for any number of tasks."""
    agent = load_agent(write_checkpoint(tmp_path / "agent.ckpt", name))
    difference = export(str(tmp_path / "agent.ckpt"), str(tmp_path / "new" / "bundle"))
    bundle = tmp_path / "new" / "bundle"
    assert {path.name for path in bundle.iterdir()} == FILES
    assert max(difference.action, difference.memory) < 1e-5
    assert difference.steps >= 4
    follow(agent, load_agent(bundle))

    program = torch.export.load(bundle / "step.pt2").module()
    generator = torch.Generator().manual_seed(2)
    for rows in (1, 2, 7):
        observation = torch.randn(rows, agent.data.env_info.obs_dim, generator=generator)
        reward = torch.randn(rows, 1, generator=generator)
        given = {"latent_noise": torch.randn(rows, 5, generator=generator)} if name == "pearl" else {}
        memory, own = torch.zeros(rows, agent.step.memory_dim), agent.initial_memory(rows)
        for _ in range(3):
            inputs = {"observation": observation, "reward": reward, "memory": memory}
            action, memory = program(**inputs, **({"given": given} if given else {}))
            expected, own = agent.act(observation, reward, own, **given)
            torch.testing.assert_close(action, expected)
            torch.testing.assert_close(memory, own)


@pytest.mark.parametrize("name", NAMES)
def test_compact_bundle_is_the_agent_rounded(name: str, tmp_path: Path) -> None:
    agent = load_agent(write_checkpoint(tmp_path / "agent.ckpt", name))
    difference = export(str(tmp_path / "agent.ckpt"), str(tmp_path / "bundle"), compact=True)
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == FILES - {"step.pt2"}
    rounded = load_agent(tmp_path / "bundle")
    for key, value in rounded.learner.named_parameters():
        torch.testing.assert_close(value, agent.learner.get_parameter(key).bfloat16().float(), rtol=0, atol=0)
    for key, value in rounded.learner.named_buffers():
        assert torch.equal(value, agent.learner.get_buffer(key))
    assert 0 < difference.memory < 0.05
    again = compare(rounded.step, agent)
    assert again == difference
    assert str(difference) in (tmp_path / "bundle" / "README.md").read_text()
    export(str(tmp_path / "agent.ckpt"), str(tmp_path / "whole"))
    sizes = [sum(path.stat().st_size for path in (tmp_path / each).iterdir()) for each in ("bundle", "whole")]
    assert sizes[0] < sizes[1] / 2


def test_readme_is_right(tmp_path: Path) -> None:
    """Its second example runs as it is written."""
    write_checkpoint(tmp_path / "agent.ckpt", "task oracle")
    export(str(tmp_path / "agent.ckpt"), str(tmp_path / "bundle"))
    text = (tmp_path / "bundle" / "README.md").read_text()
    code = text.split("```py\n")[2].partition("```")[0].replace("step.pt2", str(tmp_path / "bundle" / "step.pt2"))
    inputs = {"observation": torch.zeros(1, 3), "reward": torch.zeros(1, 1), "task": torch.ones(1, 2)}
    exec(code, inputs)
    assert inputs["action"].shape == (1,)
    assert "observation [N, 3]" in text
    assert "task [N, 2]" in text


def test_another_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if only the statistics of an input differ; then nothing is written."""

    def wrong(agent: TrainedAgent) -> torch.export.ExportedProgram:
        other = copy.deepcopy(agent)
        other.learner.state_dict()["agent.policy.latent.norm.mean"].add_(3.0)
        return export_step(other)

    write_checkpoint(tmp_path / "agent.ckpt", "vi_hn continuous")
    monkeypatch.setattr(module, "export_step", wrong)
    with pytest.raises(ConfigError, match="the program acts in another way; largest difference over"):
        export(str(tmp_path / "agent.ckpt"), str(tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_difference_grows_with_the_error(tmp_path: Path) -> None:
    agent = load_agent(write_checkpoint(tmp_path / "agent.ckpt", "rnn_hn continuous"))
    program = export_step(agent)
    assert compare(program.module(), agent).action < TOLERANCE
    agent.learner.agent.policy.actor.layers[-1].bias_head.bias.add_(0.25)
    assert compare(program.module(), agent).action == pytest.approx(0.25, abs=1e-4)
    agent.learner.agent.encoder.sequence.cell.bias_hh_l0.fill_(torch.nan)
    assert math.isnan(compare(program.module(), agent).memory)


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "agent.ckpt")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--output .*file is a file; expected a directory"):
        export(str(tmp_path / "agent.ckpt"), str(tmp_path / "file"))
