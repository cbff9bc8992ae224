"""Analyses of memories: what must hold of any weights, and the command."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as tiny_runs
import torch
import yaml
from torch import Tensor

from hyperrl.configuration import config_root
from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import build, load_agent
from hyperrl.experiments.analysis import analyze, gradients, order, outputs
from hyperrl.experiments.analysis.inputs import Synthetic
from hyperrl.experiments.analysis.memories import Memory, Model, without_biases
from hyperrl.experiments.analysis.quantities import QUANTITIES
from hyperrl.experiments.analysis.trajectories import play
from hyperrl.modules.encoder import Transition

STEPS, WIDTH = 12, 80
ORDER_FREE = ("model/max", "model/max_st", "model/cnp_hn", "model/softmax_tp1", "model/wsoftmax_tp1")


def memory(model: str, seed: int = 0) -> Memory:
    return Model.read(model).memory(seed, STEPS)


def noise(runs: int = 2, steps: int = STEPS) -> Tensor:
    return Synthetic(steps).draw("noise", np.random.default_rng(0), runs, WIDTH)


def first_curve(model: str) -> Tensor:
    return gradients.first_input_gradient(memory(model), noise()).norm(dim=-1)


# Properties of the published analyses


@pytest.mark.parametrize("model", ["model/rnn_hn", "model/amrl", "model/splagger_avg", "model/causal_transformer"])
def test_gradient_of_last_output_by_first_input_is_the_same_in_both_analyses(model: str) -> None:
    first = gradients.first_input_gradient(memory(model), noise())
    every = gradients.every_input_gradient(memory(model), noise())
    torch.testing.assert_close(first[:, -1], every[:, 0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("model", ORDER_FREE)
def test_order_free_memories_do_not_depend_on_order(model: str) -> None:
    y, z = reordered(model)
    assert order.direction_difference(y, z).max() < 1e-5


def test_order_matters_to_recurrent_memories_but_not_for_the_first_step() -> None:
    curve = order.direction_difference(*reordered("model/rnn_hn"))
    assert curve[0] < 1e-6
    assert curve[4:].min() > 0.3


def reordered(model: str) -> tuple[Tensor, Tensor]:
    x = noise(3)
    orders = order.prefix_orders(np.random.default_rng(1), 3, STEPS)
    with torch.no_grad():
        return memory(model)(x), order.reordered_outputs(memory(model), x, orders)


def test_straight_through_gradients_leave_outputs_unchanged() -> None:
    torch.testing.assert_close(*(order.direction_difference(*reordered(m)) for m in ("model/amrl", "model/splagger")))
    assert not torch.allclose(first_curve("model/amrl"), first_curve("model/splagger"), rtol=0.1)


def test_straight_through_maximum_without_recurrence_keeps_the_gradient_exactly() -> None:
    curve = first_curve("model/amrl_no_rnn")
    torch.testing.assert_close(curve, curve[:, :1].expand_as(curve), rtol=1e-5, atol=0)


def test_mean_without_recurrence_divides_the_gradient_by_the_count() -> None:
    curve = first_curve("model/cnp_hn")
    torch.testing.assert_close(curve, curve[:, :1] / torch.arange(1, STEPS + 1), rtol=1e-5, atol=0)


def test_blocks_do_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    x, orders = noise(), order.prefix_orders(np.random.default_rng(0), 2, STEPS)
    whole = memory("model/splagger")
    expected = gradients.first_input_gradient(whole, x), order.reordered_outputs(whole, x, orders)
    monkeypatch.setattr(gradients, "STEPS_AT_ONCE", 5 * 2 * STEPS)
    assert [len(block) for block in gradients.blocks_of_steps(x)] == [5, 5, 2]
    cut = gradients.first_input_gradient(whole, x), order.reordered_outputs(whole, x, orders)
    torch.testing.assert_close(cut, expected, rtol=1e-4, atol=1e-6)


def test_parameter_gradients_leave_out_embeddings_and_are_those_of_one_output() -> None:
    module, x = memory("model/splagger"), noise(1)
    norms = gradients.parameter_gradient_norms(module, x)
    module.zero_grad()
    module(x)[0, 7].sum().backward()
    expected = torch.stack([parameter.grad.norm() for parameter in module.parameters()])
    torch.testing.assert_close(norms[0, 7], expected, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in module.embed.parameters())


def test_orders_are_permutations_of_prefixes() -> None:
    orders = order.prefix_orders(np.random.default_rng(0), 3, 20)
    for t in range(20):
        assert orders[:, t, : t + 1].sort(-1).values.eq(torch.arange(t + 1)).all()
        assert orders[:, t, t + 1 :].eq(-1).all()
    # Every input is equally likely to come first.
    first = order.prefix_orders(np.random.default_rng(0), 20_000, 3)[:, 2, 0]
    assert (torch.bincount(first, minlength=3) / 20_000 - 1 / 3).abs().max() < 0.015


# Other quantities, on outputs made by hand


def test_quantities_of_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, other = torch.randn(2, 6, 5, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(outputs.signal_to_noise(2 * signal, signal), torch.full((5,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(outputs.decorrelation(signal, 3 * signal + 1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(outputs.decorrelation(signal, -signal), torch.full((5,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(outputs.inverse_variance(2 * signal), outputs.inverse_variance(signal) / 4)
    torch.testing.assert_close(outputs.normalized_norm(signal), outputs.normalized_norm(9 * signal))
    assert outputs.signal_noise_distance(signal[:1], signal[:1]).eq(0).all()
    separable = outputs.linear_separation(torch.ones_like(signal), torch.zeros_like(signal))
    torch.testing.assert_close(separable, torch.ones(5, dtype=torch.float64))
    assert (outputs.linear_separation(signal, signal) - 0.5).abs().max() < 1e-9
    apart = outputs.map_distance(signal + 50, other, seed=0)
    assert apart.min() > outputs.map_distance(signal, signal + 1e-6, seed=0).max()


def test_memories_without_biases_give_nothing_for_nothing() -> None:
    module, nothing = memory("model/splagger"), torch.zeros(1, 3, WIDTH)
    assert without_biases(module)(nothing).eq(0).all()
    assert module(nothing).ne(0).all()  # the original keeps its own


# Inputs


def test_laws_of_synthetic_inputs() -> None:
    def draw(kind: Any, **changes: Any) -> Tensor:
        return Synthetic(steps=500, scale=2.0, **changes).draw(kind, np.random.default_rng(0), 20, 3)

    uniform = draw("noise")
    assert uniform.abs().max() < 2
    assert abs(uniform.mean()) < 0.05
    assert abs(uniform.var() - 4 / 3) < 0.05
    once = draw("signal")
    assert once[:, 0].eq(2).all()
    assert once[:, 1:].eq(0).all()
    strong = draw("signal", strong=True, probability=0.1, block=0.4)
    assert set(strong.unique().tolist()) == {0.0, 2.0}
    assert abs(strong[:, :300].mean() / 2 - 0.1) < 0.02
    assert strong[:, 300:].eq(0).all()
    for kind, first in (("signal_noise", 2), ("antisignal_noise", -2)):
        pulses = draw(kind)
        assert pulses[:, 0].eq(first).all()
        assert set(pulses.unique().tolist()) == {-2.0, 2.0}
        assert abs(pulses[:, 1:].mean()) < 0.1
        assert pulses.eq(pulses[..., :1]).all()  # all components alike


def test_agents_of_all_models_share_seeds_inputs_and_sequence_models() -> None:
    rnn, amrl = memory("model/rnn_hn", seed=2), memory("model/amrl", seed=2)
    torch.testing.assert_close(rnn.encoder.sequence.state_dict(), amrl.encoder.sequence.state_dict(), rtol=0, atol=0)
    assert not torch.equal(*(memory("model/rnn_hn", seed).encoder.sequence.cell.weight_hh_l0 for seed in (0, 2)))
    assert (rnn.width, rnn(noise()).shape[-1]) == (WIDTH, 24)
    assert [parameter.shape for parameter in rnn.encoder.output.parameters()] == [(24, 256), (24,)]  # of any seed: A1


# The command


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Two small models, as files."""
    paths = []
    for name in ("splagger", "max"):
        config = yaml.safe_load((config_root() / f"model/{name}.yaml").read_text())
        config["model"]["encoder"] |= {"hidden_dim": 8, "state_embedding_dim": 4, "latent_dim": 2}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        paths.append(f"{name}={path}")
    return paths


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_quantity_gives_a_picture_and_numbers(quantity: Any, tiny: list[str], tmp_path: Path) -> None:
    curves = analyze(quantity, tiny, steps=8, agents=2, output=tmp_path / "out" / "a.png", final=True)
    assert (tmp_path / "out" / "a.png").read_bytes()[1:4] == b"PNG"
    rows = list(csv.DictReader((tmp_path / "out" / "a.csv").open()))
    assert [(row["model"], int(row["seed"]), int(row["t"])) for row in rows] == [
        (model, seed, t) for model in ("splagger", "max") for seed in range(2) for t in range(8)
    ]
    written = np.array([float(row["value"] or "nan") for row in rows]).reshape(2, 2, 8)
    np.testing.assert_allclose(written, np.stack([curves["splagger"], curves["max"]]), rtol=1e-8)
    assert np.isfinite(written).all() if quantity != "decorrelation" else np.isnan(written[..., 0]).all()

    bars = [
        (row["model"], float(row["value"] or "nan"))
        for row in csv.DictReader((tmp_path / "out" / "a_final.csv").open())
    ]
    order_of_bars = list(dict.fromkeys(name for name, _ in bars))
    means = [np.nan_to_num(curves[name][:, -1].mean()) for name in order_of_bars]
    assert means == sorted(means, reverse=True)
    np.testing.assert_allclose(
        [value for _, value in bars], [v for n in order_of_bars for v in curves[n][:, -1]], rtol=1e-8
    )


def test_same_options_give_the_same_numbers(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (analyze("permutation_difference", tiny, steps=6, agents=2) for _ in range(2))
    assert (tmp_path / "analysis_permutation_difference.csv").is_file()
    alone = analyze("permutation_difference", tiny[1:], steps=6, agents=2)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(first["max"], alone["max"])  # models do not disturb each other


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """A checkpoint of a toy agent."""
    config: dict[str, Any] = {"data": {**tiny_runs.DATA, "env": tiny_runs.TOY}}
    config["model"] = {"encoder": tiny_runs.ENCODER, "policy": tiny_runs.POLICY}
    learner, _ = build(config)
    path = tmp_path / "toy.ckpt"
    state = {"state_dict": learner.state_dict(), "config": yaml.safe_dump(config), "learner": {"frames": 0}}
    torch.save(state, path)
    return str(path)


def test_trajectories_of_a_trained_agent_reach_memories_through_embeddings(trained: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"trajectories": trained, "agents": 2, "runs": 3, "output": tmp_path / "a.png"}
    curves = analyze("norm", [trained, "model/splagger"], **options)
    lengths = {values.shape for values in curves.values()}
    assert lengths == {curves[trained].shape}
    assert curves[trained].shape[1] >= 4  # two episodes of at least two steps

    trajectories = play(trained, 3, seed=1)
    encoder = load_agent(trained).learner.agent.encoder
    transitions = Transition.last(trajectories)
    with torch.no_grad():
        latents = encoder(
            transitions, torch.zeros(transitions.reward.shape[:2], dtype=torch.bool), encoder.initial_state(3)
        )
    expected = outputs.norm(latents.double())[: curves[trained].shape[1]]
    np.testing.assert_allclose(curves[trained][1][: len(expected)], expected, rtol=1e-5)


def test_trained_memory_is_the_same_for_all_seeds(trained: str) -> None:
    model = Model.read(trained)
    first, second = (model.memory(seed, STEPS) for seed in range(2))
    x = torch.randn(1, 4, first.width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(first(x), second(x), rtol=0, atol=0)
    assert gradients.parameter_gradient_norms(first, x).any()


def test_random_actions_in_an_environment_by_its_id() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (play("GridNavi-v0", 4, seed) for seed in (0, 0, 1))
    assert first["prev_action"].shape == (4, 60, 1)
    assert first["prev_action"].unique().tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(first["observation"], second["observation"], rtol=0, atol=0)
    assert not torch.equal(first["observation"], other["observation"])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantity": "snr"}, r"quantity is snr; expected one of first_input_gradient"),
        ({"models": []}, r"models is empty"),
        ({"models": ["model/splager"]}, r"did you mean model/splagger\?"),
        ({"models": ["model/no_memory"]}, r"model/no_memory has no memory"),
        ({"models": ["model/max", "model/max"]}, r"max is there twice; expected NAME=SOURCE"),
        ({"models": ["absent.ckpt"]}, r"absent.ckpt: no such file"),
        ({"agents": 0}, r"agents is 0; expected at least 1"),
        ({"runs": 0}, r"runs is 0; expected at least 1"),
        ({"steps": 0}, r"steps is 0; expected at least 1"),
        ({"scale": 0.0}, r"scale is 0.0; expected a positive number"),
        ({"ci": 100.0}, r"ci is 100.0"),
        ({"strong": True}, r"strong is true and there is no signal"),
        ({"strong_block": 1.5}, r"strong_block is 1.5; expected a number from 0 to 1"),
        ({"quantity": "signal_to_noise", "inputs": "noise"}, r"inputs is noise; expected none"),
        ({"quantity": "signal_to_noise", "trajectories": "GridNavi-v0"}, r"trajectories is GridNavi-v0; expected none"),
        ({"inputs": "noise", "trajectories": "GridNavi-v0"}, r"expected one of them"),
        ({"trajectories": "GridNav-v0"}, r"trajectories: .*GridNavi-v0"),
        ({"trajectories": "GridNavi-v0", "steps": 61}, r"steps is 61; expected at most 60"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"quantity": "norm", "models": ["model/max"], "output": tmp_path / "a.png", **options}
    with pytest.raises(ConfigError, match=message) as error:
        analyze(**given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_embeddings_have_to_fit_the_trajectories(trained: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads observation of width 3; expected 5, as the trajectories have"):
        analyze("norm", [trained], trajectories="T-LN-v0", output=tmp_path / "a.png")
