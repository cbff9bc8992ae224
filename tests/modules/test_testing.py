"""The checks of public contracts accept what keeps them, and name what is broken in what does not."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from hyperrl import keys, testing
from hyperrl.env_info import ActionSpace
from hyperrl.modules.aggregators import Aggregator, Sum
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder, Transition
from hyperrl.modules.hypernet import Input
from hyperrl.modules.policy import Policy, PolicyConfig
from hyperrl.modules.sequence import SequenceModel
from hyperrl.testing import check_aggregator, check_encoder, check_policy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encoders.md"
OBS, LATENT, BELIEF, TASK, TASKS = 3, 4, 5, 2, 7
SIZES = {"belief_dim": BELIEF, "task_dim": TASK, "num_tasks": TASKS}
DISCRETE, GAUSSIAN = ActionSpace(1, 5), ActionSpace(2, low=(-1.0, -2.0), high=(1.0, 3.0))
SYMMETRIC = ActionSpace(2, low=(-1.0, -1.0), high=(1.0, 1.0))
SMALL: dict[str, Any] = {"state_embedding_dim": 8, "latent_embedding_dim": 3, "layers": [8, 6]}


def refuses(check: Callable[[], None], message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)) as caught:
        check()
    assert "\n" not in str(caught.value)


def test_the_examples_of_the_docstrings_pass() -> None:
    found = doctest.testmod(testing)
    assert found.attempted >= 5
    assert not found.failed


# Aggregators; more of them in test_aggregators.py


class Impatient(Sum):
    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        output = super().forward(x, reset, state, initial)
        return output if reset.any() or reset.shape[1] > 20 else output + 1


class Numbered(Sum):
    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, state = super().step(x, state)
        return output + torch.arange(len(output)).unsqueeze(1), state

    def forward(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> Tensor:
        return super().forward(x, reset, state, initial) + torch.arange(len(x)).view(-1, 1, 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Impatient, "a reset differs from a fresh start"),
        (Numbered, "the order of the batch matters"),
    ],
)
def test_broken_aggregators(broken: Callable[[int], Aggregator], message: str) -> None:
    refuses(lambda: check_aggregator(broken), message)


# Encoders


class Truncated(TrajectoryEncoder):
    def prior(self, batch: int) -> Tensor:
        return super().prior(batch)[:, 1:]


class Rounded(TrajectoryEncoder):
    def prior(self, batch: int) -> Tensor:
        return super().prior(batch).float()


class Infinite(TrajectoryEncoder):
    def _leave(self, by: Tensor | None, x: Tensor) -> Tensor:
        return super()._leave(by, x) / 0


class InPlace(TrajectoryEncoder):
    def step(self, transition: Transition, state: Tensor) -> tuple[Tensor, Tensor]:
        latent, after = super().step(transition, state)
        return latent, state.copy_(after.detach())


class Amnesic(TrajectoryEncoder):
    def forward(self, transition: Transition, reset: Tensor, state: Tensor) -> Tensor:
        return super().forward(transition, reset, self.initial_state(len(state)))


class Unending(TrajectoryEncoder):
    def forward(self, transition: Transition, reset: Tensor, state: Tensor) -> Tensor:
        return super().forward(transition, torch.zeros_like(reset), state)


class Detached(TrajectoryEncoder):
    def forward(self, transition: Transition, reset: Tensor, state: Tensor) -> Tensor:
        return super().forward(transition._replace(reward=transition.reward.detach()), reset, state)


class ShortSighted(TrajectoryEncoder):
    def forward(self, transition: Transition, reset: Tensor, state: Tensor) -> Tensor:
        return super().forward(transition, reset, state) + (reset.shape[1] < 13)


class Unresettable(TrajectoryEncoder):
    def forward(self, transition: Transition, reset: Tensor, state: Tensor) -> Tensor:
        return super().forward(transition, reset & ~reset.all(0), state)


class Shared(TrajectoryEncoder):
    def _leave(self, by: Tensor | None, x: Tensor) -> Tensor:
        return super()._leave(by, x - x.mean(0))


class Ranked(TrajectoryEncoder):
    def _leave(self, by: Tensor | None, x: Tensor) -> Tensor:
        return super()._leave(by, x) + torch.arange(len(x)).view(-1, *[1] * (x.dim() - 1))


class Counting(TrajectoryEncoder):
    def prior(self, batch: int) -> Tensor:
        return super().prior(batch) * batch


class Restless(TrajectoryEncoder):
    def act(self, td: TensorDictBase, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().act(td.clone().fill_(keys.IS_INIT, False), memory)


class Lossy(TrajectoryEncoder):
    def attach_memory(self, rollout: TensorDictBase, memory: Tensor | None) -> None:
        super().attach_memory(rollout, None)


class Idle(TrajectoryEncoder):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.idle = nn.Linear(2, 2)


class Cast(TrajectoryEncoder):
    def forward(self, transition: Transition, reset: Tensor, state: Tensor) -> Tensor:
        latent = super().forward(transition, reset, state)
        return latent @ torch.eye(self.latent_dim, dtype=latent.dtype)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Truncated, "prior(B) has shape (5, 9), expected (5, 10)"),
        (Rounded, "prior(B) is torch.float32, expected torch.float64"),
        (Infinite, "prior(B) is not finite"),
        (InPlace, "step changes the memory that it is given"),
        (Amnesic, "forward differs from stepping"),
        (Unending, "forward differs from stepping"),
        (Detached, "gradient by reward differs from stepping"),
        (ShortSighted, "a sequence that is cut in two differs from the whole"),
        (Unresettable, "a reset differs from a fresh start"),
        (Shared, "a row depends on the others"),
        (Ranked, "the order of the batch matters"),
        (Counting, "prior depends on the batch"),
        (Restless, "encode differs from acting"),
        (Lossy, "start_memory differs from what was attached"),
        (Idle, "no gradient reaches idle.weight"),
        (Cast, "latent of forward is less exact under autocast"),
    ],
)
def test_broken_encoders(broken: type[TrajectoryEncoder], message: str) -> None:
    refuses(lambda: check_encoder(lambda: broken(3, 1, EncoderConfig(hidden_dim=6))), f"{broken.__name__}: {message}")


def test_discrete_actions_are_indices() -> None:
    seen: list[Tensor] = []

    class Recording(TrajectoryEncoder):
        def step(self, transition: Transition, state: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(transition.action.detach())
            return super().step(transition, state)

    config = EncoderConfig(hidden_dim=6, action_embedding_dim=4)
    check_encoder(lambda: Recording(2, 1, config), 2, num_actions=4)
    actions = torch.cat([each.flatten() for each in seen])
    assert sorted(set(actions.tolist())) == [0, 1, 2, 3]


# Policies

CONFIGS: dict[str, dict[str, Any]] = {
    "concat": {"conditioning": "concat"},
    "relu": {"conditioning": "concat", "activation": "relu", "normalize_state": False},
    "latent only": {"conditioning": "concat", "use_state": False},
    "state only": {"conditioning": "concat", "use_latent": False},
    "hypernetwork": {},
    "no embeddings": {"state_embedding_dim": None, "latent_embedding_dim": None},
    "deep hypernetwork": {"hypernet_layers": [7, 5], "hypernet_softmax_temperature": 0.5},
    "no head bias": {"hypernet_head_bias": False, "hypernet_init": "none"},
    "hidden layers generated": {"generated_layers": [False, True, False]},
    "head generated": {"generated_layers": [False, False, True]},
    "normalised latent": {"normalize_latent": True},
    "task generates": {"use_task": True, "hypernet_input": "task"},
    "film": {"conditioning": "film", "hypernet_layers": [5]},
    "film, head": {"conditioning": "film", "generated_layers": [False, False, True]},
    "belief and task": {"use_belief": True, "use_task": True},
    "one hot": {"conditioning": "concat", "use_task": True, "task_as_one_hot": True},
    "per task": {"conditioning": "per_task", "use_task": True},
}
ACTIONS: dict[str, tuple[ActionSpace, bool]] = {
    "discrete": (DISCRETE, False),
    "gaussian": (GAUSSIAN, False),
    "bounded": (GAUSSIAN, True),
    "symmetric": (SYMMETRIC, True),
}


def check(policy: Callable[..., Policy], actions: ActionSpace = DISCRETE, **config: Any) -> None:
    settings = PolicyConfig(**SMALL | config)
    check_policy(lambda: policy(OBS, LATENT, actions, settings, **SIZES), OBS, LATENT, **SIZES)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("config", CONFIGS)
def test_policies_keep_the_contract(config: str, actions: str) -> None:
    space, bounded = ACTIONS[actions]
    check(Policy, space, bound_actions=bounded, **CONFIGS[config])


class Flat(Policy):
    def value(self, inputs: Input) -> Tensor:
        return super().value(inputs)[:, 0]


class Undefined(Policy):
    def value(self, inputs: Input) -> Tensor:
        return super().value(inputs).log()


class Halved(Policy):
    def value(self, inputs: Input) -> Tensor:
        return super().value(inputs).to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)


class Misnamed(Policy):
    def distribution(self, inputs: Input) -> dict[str, Tensor]:
        return {"probabilities": super().distribution(inputs)[keys.LOGITS].softmax(-1)}


class Negative(Policy):
    def distribution(self, inputs: Input) -> dict[str, Tensor]:
        parameters = super().distribution(inputs)
        return {keys.LOC: parameters[keys.LOC], keys.SCALE: -parameters[keys.SCALE]}


class Noisy(Policy):
    def value(self, inputs: Input) -> Tensor:
        return nn.functional.dropout(super().value(inputs), 0.5, self.training)


class Different(Policy):
    def value(self, inputs: Input) -> Tensor:
        return super().value(inputs) + self.training


class Centred(Policy):
    def value(self, inputs: Input) -> Tensor:
        value = super().value(inputs)
        return value - value.mean()


class Positional(Policy):
    def value(self, inputs: Input) -> Tensor:
        return super().value(inputs) + torch.arange(len(inputs.x)).unsqueeze(1)


class Frozen(Policy):
    def value(self, inputs: Input) -> Tensor:
        return super().value(inputs).detach()


class Cut(Policy):
    def inputs(self, observation: Any = None, latent: Any = None, belief: Any = None, task: Any = None) -> Input:
        return super().inputs(observation, latent.detach(), belief, task)


class Pretending(Policy):
    def materialise(self, inputs: Input) -> dict[str, Tensor]:
        return {name: 2 * value for name, value in super().materialise(inputs).items()}


class Secretive(Policy):
    def materialise(self, inputs: Input) -> dict[str, Tensor]:
        return {}


class Eager(Policy):
    def inputs(self, observation: Any = None, latent: Any = None, belief: Any = None, task: Any = None) -> Input:
        found = super().inputs(observation, latent, belief, task)
        self.update_statistics(observation, latent, belief, task)
        return found


class LearnsAside(Policy):
    @torch.no_grad()
    def update_statistics(self, *inputs: Tensor | None, **named: Tensor | None) -> None:
        super().update_statistics(*inputs, **named)
        self.critic.layers[-1].bias_head.bias.add_(1)  # type: ignore[union-attr, operator]


class Static(Policy):
    def update_statistics(self, *inputs: Tensor | None, **named: Tensor | None) -> None:
        pass


class Hidden(Policy):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.offset = torch.rand(())

    def value(self, inputs: Input) -> Tensor:
        return super().value(inputs) + self.offset


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Flat, "value has shape (19,), expected (19, 1)"),
        (Undefined, "value is not finite"),
        (Halved, "value under autocast is torch.bfloat16, expected torch.float32"),
        (Misnamed, "gives ['probabilities', 'value'], expected ['logits', 'value']"),
        (Noisy, "value differs from evaluation to evaluation"),
        (Different, "value differs from evaluation to evaluation"),
        (Centred, "value: a row depends on the others"),
        (Positional, "value: the order of the batch matters"),
        (Cut, "no gradient reaches latent"),
        (Pretending, "critic: materialised weights give another output"),
        (Secretive, "materialise gives [], expected ['actor/0/bias'"),
        (Eager, "evaluation changes state.norm.mean"),
        (LearnsAside, "update_statistics changes the parameter critic.layers.2.bias_head.bias"),
        (Static, "update_statistics leaves state.norm as it is"),
        (Hidden, "value of a copy made from the state dict differs"),
    ],
)
def test_broken_policies(broken: type[Policy], message: str) -> None:
    refuses(partial(check, broken), f"{broken.__name__}: {message}")


def test_broken_values_and_deviations() -> None:
    refuses(partial(check, Frozen, conditioning="concat"), "Frozen: no gradient reaches critic.layers.0.weight")
    refuses(partial(check, Negative, GAUSSIAN), "Negative: scale is not positive")


# Documentation


def test_the_examples_of_the_documentation_keep_the_contracts() -> None:
    model, policy = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(model, namespace)
    exec(policy, namespace)
    average: type[SequenceModel] = namespace["Average"]
    check_encoder(lambda: TrajectoryEncoder(3, 1, EncoderConfig(hidden_dim=8, sequence=average)))
    check(namespace["Tempered"])
