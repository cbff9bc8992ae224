"""The encoder's contract: stepping through real rollouts equals one sequence call, with resets inside."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tiny import TOY
from torch import Tensor, nn

from hyperrl import keys
from hyperrl.data.rollouts import RolloutStream
from hyperrl.envs import make_env
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder, Transition
from hyperrl.modules.policy import ActionSpace, PolicyConfig

ENVS = 5
# Name: environment, its episodes per task, steps per rollout, number of rollouts, encoder.
CASES: dict[str, tuple[str, int, int, int, dict[str, Any]]] = {
    "one task ends inside": ("GridNavi-v0", 4, 70, 2, {}),
    "two tasks end inside": ("GridNavi-v0", 2, 70, 2, {}),
    "tasks span rollouts": ("GridNavi-v0", 2, 7, 10, {}),
    "tasks end with the rollout": ("GridNavi-v0", 4, 60, 2, {}),
    "every environment by itself": (TOY, 2, 23, 3, {}),
    "every environment by itself, one step": (TOY, 2, 1, 25, {}),
    "single episodes": (TOY, 1, 23, 2, {}),
    "full transitions": (TOY, 2, 23, 2, {"full_transitions": True, "action_embedding_dim": 4}),
    "no rewards": (TOY, 2, 23, 2, {"reward_embedding_dim": 0}),
}


class Collected:
    """Rollouts of a real environment, acted by an agent of random parameters."""

    def __init__(self, env: str, episodes: int, steps: int, number: int, encoder: dict[str, Any]) -> None:
        torch.manual_seed(0)
        source = make_env(env, ENVS, seed=3, episodes_per_task=episodes)
        actions = ActionSpace(source.action_dim, source.num_actions)
        policy = PolicyConfig(layers=[8], state_embedding_dim=8)
        agent = Agent(source.obs_dim, actions, EncoderConfig(hidden_dim=12, **encoder), policy)
        for name, parameter in agent.encoder.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter, std=0.3)
        self.encoder = agent.encoder
        stream = RolloutStream(source, lambda generator: Actor(agent, generator), steps, seed=1)
        self.rollouts = [stream.collect() for _ in range(number)]

    def __iter__(self) -> Iterator[TensorDictBase]:
        return iter(self.rollouts)


@pytest.fixture(scope="module", params=CASES)
def collected(request: pytest.FixtureRequest) -> Collected:
    return Collected(*CASES[request.param])


@pytest.fixture(scope="module")
def irregular() -> Collected:
    """Tasks that end at different times in different environments."""
    return Collected(TOY, 2, 23, 3, {})


@torch.no_grad()
def stepped(encoder: TrajectoryEncoder, rollouts: list[TensorDictBase]) -> tuple[Tensor, Tensor, Tensor]:
    """Latents at decision time, latents after each step and memories, one step at a time over all rollouts."""
    memory, before, after, memories = encoder.initial_state(ENVS), [], [], []
    for td in torch.cat(rollouts, 1).unbind(1):
        latent, memory = encoder.step(Transition.last(td), memory)
        first = td[keys.IS_INIT]
        before.append(torch.where(first, encoder.prior(ENVS), latent))
        memory = torch.where(first, encoder.initial_state(ENVS), memory)
        memories.append(memory)
        after.append(encoder.step(Transition.last(td[keys.NEXT]), memory)[0])
    return torch.stack(before, 1), torch.stack(after, 1), torch.stack(memories, 1)


def test_stepping_equals_one_sequence_call(collected: Collected) -> None:
    before, after, _ = stepped(collected.encoder, collected.rollouts)
    encoded = [collected.encoder.encode(rollout) for rollout in collected]
    torch.testing.assert_close(torch.cat([pair[0] for pair in encoded], 1), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([pair[1] for pair in encoded], 1), after, rtol=1e-4, atol=1e-5)


def test_stored_memory_is_that_of_stepping(collected: Collected) -> None:
    *_, memories = stepped(collected.encoder, collected.rollouts)
    stored = torch.cat([rollout[keys.MEMORY] for rollout in collected], 1)
    torch.testing.assert_close(stored, memories, rtol=1e-4, atol=1e-5)


def test_memory_is_carried_across_rollouts(collected: Collected) -> None:
    """Except at a task's start, where nobody reads it."""
    goes_on = [~rollout[keys.IS_INIT][..., 0] for rollout in collected]
    for index, (last, rollout) in enumerate(pairwise(collected.rollouts), 1):
        mask = goes_on[index][:, 0]
        assert torch.equal(rollout[keys.PREV_MEMORY][mask, 0], last[keys.MEMORY][mask, -1])
    rollout, mask = torch.cat(collected.rollouts, 1), torch.cat(goes_on, 1)[:, 1:]
    assert torch.equal(rollout[keys.PREV_MEMORY][:, 1:][mask], rollout[keys.MEMORY][:, :-1][mask])
    assert rollout[keys.PREV_MEMORY].any()


def test_a_task_starts_from_the_prior_and_without_memory(collected: Collected) -> None:
    rollout = torch.cat(collected.rollouts, 1)
    first = rollout[keys.IS_INIT][..., 0]
    assert first[:, 1:].any()
    assert not rollout[keys.MEMORY][first].any()
    latent = torch.cat([collected.encoder.encode(each)[0] for each in collected], 1)
    expected = collected.encoder.prior(int(first.sum()))
    torch.testing.assert_close(latent[first], expected)
    assert not torch.isclose(latent[~first], expected[:1]).all(-1).any()


def test_prior_is_the_output_after_one_empty_feature_vector(irregular: Collected) -> None:
    encoder = irregular.encoder
    features = torch.zeros(1, encoder.features.output_dim)
    output, _ = encoder.sequence.cell(features.unsqueeze(1))
    torch.testing.assert_close(encoder.prior(3), encoder.output(output[:, 0]).expand(3, -1))


def test_the_last_transition_of_a_task_is_encoded_before_the_reset(irregular: Collected) -> None:
    for rollout in irregular:
        latent, after = irregular.encoder.encode(rollout)
        for row, step in rollout[keys.NEXT, keys.DONE][..., 0].nonzero().tolist():
            final = Transition.last(rollout[keys.NEXT][row : row + 1, step])
            expected, _ = irregular.encoder.step(final, rollout[keys.MEMORY][row : row + 1, step])
            torch.testing.assert_close(after[row, step], expected[0], rtol=1e-4, atol=1e-5)
            if step + 1 < rollout.shape[1]:
                assert torch.equal(latent[row, step + 1], irregular.encoder.prior(1)[0])


def test_within_a_task_the_latent_after_a_step_is_the_next_ones(irregular: Collected) -> None:
    for rollout in irregular:
        latent, after = irregular.encoder.encode(rollout)
        goes_on = ~rollout[keys.NEXT, keys.DONE][:, :-1, 0]
        torch.testing.assert_close(after[:, :-1][goes_on], latent[:, 1:][goes_on])


def test_no_leak_across_environments(irregular: Collected) -> None:
    rollout = irregular.rollouts[1].clone()
    expected = irregular.encoder.encode(rollout)
    rollout[keys.NEXT, keys.OBSERVATION][2] += 1.0
    rollout[keys.PREV_MEMORY][2] += 1.0
    others = [0, 1, 3, 4]
    for found, wanted in zip(irregular.encoder.encode(rollout), expected, strict=True):
        torch.testing.assert_close(found[others], wanted[others], rtol=0, atol=1e-6)
        assert (found[2] - wanted[2]).abs().max() > 1e-3


def test_order_of_environments_does_not_matter(irregular: Collected) -> None:
    rollout, order = irregular.rollouts[1], torch.tensor([4, 2, 0, 1, 3])
    for found, wanted in zip(irregular.encoder.encode(rollout[order]), irregular.encoder.encode(rollout), strict=True):
        torch.testing.assert_close(found, wanted[order], rtol=1e-5, atol=1e-6)


def test_no_gradient_passes_the_end_of_a_task(irregular: Collected) -> None:
    """Observations of one task change no latent of the next."""
    rollout = irregular.rollouts[1].clone()
    row, step = rollout[keys.IS_INIT][:, 3:, 0].nonzero()[0].tolist()
    start = step + 3
    for name in (keys.OBSERVATION, keys.PREV_OBSERVATION, keys.PREV_REWARD):
        rollout[keys.NEXT, name][row, :start] += 5.0
    before, after = irregular.encoder.encode(irregular.rollouts[1])
    changed_before, changed_after = irregular.encoder.encode(rollout)
    torch.testing.assert_close(changed_before[row, start:], before[row, start:])
    torch.testing.assert_close(changed_after[row, start:], after[row, start:])
    assert not torch.allclose(changed_after[row, :start], after[row, :start])


def test_memory_stays_in_fp32_under_autocast(irregular: Collected) -> None:
    rollout = irregular.rollouts[1]
    with torch.autocast("cpu", torch.bfloat16):
        latent, _ = irregular.encoder.encode(rollout)
    assert latent.dtype == torch.float32
    torch.testing.assert_close(latent, irregular.encoder.encode(rollout)[0])
