"""Checks of public contracts, for parts that are written outside this library as much as for its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyperrl.contracts.encoder import EncoderContract
from hyperrl.contracts.policy import PolicyContract
from hyperrl.modules.aggregators import Aggregator
from hyperrl.modules.encoder import TrajectoryEncoder
from hyperrl.modules.policy import Policy

_BATCH, _STEPS = 5, 23


def check_aggregator(
    make: Callable[[int], Aggregator], width: int = 6, *, seed: int = 0, tolerance: float = 1e-9
) -> None:
    """Checks that an aggregator keeps the contract on which acting and learning rely; see `docs/aggregators.md`.

    Everything is compared in double precision on random features with resets at random places: shapes and types,
    stepping against whole sequences (outputs and all gradients, learned initial states included), a reset against a
    fresh start, independence of the rows of a batch, and of the order of steps where that is promised.

    Args:
        make: constructs the aggregator for a number of input features.
        width: number of input features; a multiple of its ``input_factor``.
        seed: seed of the random numbers.
        tolerance: largest difference, relative to 1 + the size of the number.

    Raises:
        AssertionError: the contract is broken; the message says what.

    Example:
        >>> from hyperrl.modules.aggregators import Max
        >>> check_aggregator(Max)
    """
    check = _Check(make(width).double(), seed, tolerance)
    check.shapes()
    check.precision()
    check.stepping_equals_sequence()
    check.reset_equals_fresh_start()
    check.rows_are_independent()
    if check.aggregator.permutation_invariant:
        check.order_is_irrelevant()


def check_encoder(
    make: Callable[[], TrajectoryEncoder],
    obs_dim: int = 3,
    action_dim: int = 1,
    *,
    num_actions: int | None = None,
    reset: Tensor | None = None,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> None:
    """Checks that an encoder keeps the contract on which acting and learning rely; see `docs/encoders.md`.

    Everything is compared in double precision on random transitions, from the memory of tasks under way: shapes and
    types, stepping against whole sequences with resets inside (latents and gradients), a reset against a fresh start, a
    carried memory, acting against the re-encoded rollout, independence of the rows of a batch and of their order. In
    single precision, autocast has to change nothing.

    Args:
        make: constructs the encoder. Where it has a horizon, that has to be 27 or more, or 4 more than `reset` is long.
        obs_dim: width of observations.
        action_dim: width of actions.
        num_actions: number of discrete actions, which are given as indices; none for continuous ones.
        reset: where tasks start in the sequences that are compared, ``[B, T]``; none for random places.
        seed: seed of the random numbers.
        tolerance: largest difference, relative to 1 + the size of the number.

    Raises:
        AssertionError: the contract is broken; the message says what.

    Example:
        >>> from hyperrl.modules.encoder_config import EncoderConfig
        >>> check_encoder(lambda: TrajectoryEncoder(3, 1, EncoderConfig(hidden_dim=8)))
    """
    check = EncoderContract(make, (obs_dim, action_dim, num_actions), reset, seed, tolerance)
    check.shapes()
    check.stepping_equals_sequence()
    check.carried_memory_continues()
    check.reset_equals_fresh_start()
    check.rows_are_independent()
    check.acting_equals_learning()
    check.gradients_reach_all_parameters()
    check.autocast_changes_nothing()


def check_policy(
    make: Callable[[], Policy],
    obs_dim: int = 3,
    latent_dim: int = 10,
    *,
    belief_dim: int = 0,
    task_dim: int = 0,
    num_tasks: int = 0,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """Checks that a policy keeps the contract on which acting and learning rely; see `docs/encoders.md`.

    Everything is tried on random inputs, with random parameters, since many initial ones are zero: shapes and types,
    running statistics that move in ``update_statistics`` and nowhere else, repeatability, independence of the rows of a
    batch and of their order, gradients, materialised weights against the networks that generate them, and a copy made
    from the state dict.

    Args:
        make: constructs the policy.
        obs_dim: width of observations.
        latent_dim: width of the latent.
        belief_dim: width of the belief; 0 if there is none.
        task_dim: width of the description of a task; 0 if there is none.
        num_tasks: number of tasks with an id; 0 if they have none.
        seed: seed of the random numbers.
        tolerance: largest difference, relative to 1 + the size of the number.

    Raises:
        AssertionError: the contract is broken; the message says what.

    Example:
        >>> from hyperrl.env_info import ActionSpace
        >>> from hyperrl.modules.policy_config import PolicyConfig
        >>> check_policy(lambda: Policy(3, 10, ActionSpace(2), PolicyConfig(layers=[8])))
    """
    dims = {"observation": obs_dim, "latent": latent_dim, "belief": belief_dim, "task": task_dim}
    check = PolicyContract(make, dims, num_tasks, seed, tolerance)
    check.shapes()
    check.statistics_move_in_one_place()
    check.evaluation_repeats_itself()
    check.rows_are_independent()
    check.gradients_reach_all_parameters()
    check.materialised_weights_are_those_in_use()
    check.state_dict_holds_everything()


class _Check:
    def __init__(self, aggregator: Aggregator, seed: int, tolerance: float) -> None:
        self.aggregator, self.tolerance = aggregator, tolerance
        self.name = type(aggregator).__name__
        self.generator = torch.Generator().manual_seed(seed)
        self.x = self.random(_BATCH, _STEPS, aggregator.width)
        self.reset = torch.rand(_BATCH, _STEPS, generator=self.generator) < 0.15
        self.reset[0] = False
        self.none = torch.zeros_like(self.reset)
        # A state such as acting leaves, and the initial state moved where it may be learned.
        self.state = self.steps(self.random(_BATCH, 3, aggregator.width), self.none[:, :3], self.start())[1].detach()
        moved = 0.3 * self.random(aggregator.state_dim)
        self.initial = torch.where(aggregator.learnable, self.start()[0] + moved, self.start()[0])

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def start(self) -> Tensor:
        return self.aggregator.initial_state(_BATCH)

    def require(self, holds: bool, message: str) -> None:
        if not holds:
            raise AssertionError(f"{self.name}: {message}")

    def equal(self, what: str, ours: Tensor, expected: Tensor) -> None:
        error = float(((ours - expected).abs() / (1 + expected.abs())).max().detach())
        self.require(error <= self.tolerance, f"{what}: relative difference {error:.1e}")

    def steps(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs ``[B, T, O]`` and last state, one step at a time."""
        start = self.start() if initial is None else initial.expand_as(state)
        outputs = []
        for t in range(x.shape[1]):
            state = torch.where(reset[:, t, None], start, state)
            output, state = self.aggregator.step(x[:, t], state)
            outputs.append(output)
        return torch.stack(outputs, 1), state

    def shapes(self) -> None:
        aggregator, start = self.aggregator, self.start()
        expected = {
            "initial_state(B)": (start, (_BATCH, aggregator.state_dim)),
            "learnable": (aggregator.learnable, (aggregator.state_dim,)),
            "output of step": (aggregator.step(self.x[:, 0], start)[0], (_BATCH, aggregator.output_dim)),
            "state of step": (aggregator.step(self.x[:, 0], start)[1], (_BATCH, aggregator.state_dim)),
            "output of forward": (aggregator(self.x, self.reset, start), (_BATCH, _STEPS, aggregator.output_dim)),
        }
        for what, (tensor, shape) in expected.items():
            self.require(tensor.shape == shape, f"{what} has shape {tuple(tensor.shape)}, expected {shape}")
        promised = aggregator.output_dim if aggregator.gives_latent else aggregator.width // aggregator.input_factor
        self.require(
            aggregator.output_dim == promised,
            f"{aggregator.width} features give {aggregator.output_dim}; input_factor promises {promised}",
        )

    def precision(self) -> None:
        for what, tensor in {
            "initial_state": self.start(),
            "output of step": self.aggregator.step(self.x[:, 0], self.state)[0],
            "state of step": self.aggregator.step(self.x[:, 0], self.state)[1],
            "output of forward": self.aggregator(self.x, self.reset, self.state),
        }.items():
            self.require(tensor.dtype == torch.float64, f"{what} is {tensor.dtype} in a module of float64")
            self.require(bool(tensor.isfinite().all()), f"{what} is not finite")

    def stepping_equals_sequence(self) -> None:
        leaves = {"x": self.x, "state": self.state, "initial": self.initial}
        leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
        leaves |= dict(self.aggregator.named_parameters())
        x, state, initial = leaves["x"], leaves["state"], leaves["initial"]
        weight = self.random(_BATCH, _STEPS, self.aggregator.output_dim)
        for where, reset in {"with resets": self.reset, "without resets": self.none}.items():
            stepwise = self.steps(x, reset, state, initial)[0]
            sequence = self.aggregator(x, reset, state, initial)
            self.equal(f"forward differs from stepping {where}", sequence, stepwise)
            ours, expected = (
                torch.autograd.grad(output, list(leaves.values()), weight, allow_unused=True, materialize_grads=True)
                for output in (sequence, stepwise)
            )
            for name, value, target in zip(leaves, ours, expected, strict=True):
                free = self.aggregator.learnable if name in ("state", "initial") else torch.tensor(True)
                self.equal(f"gradient by {name} differs from stepping {where}", value * free, target * free)
        constants = self.aggregator(self.x, self.reset, self.state)
        given = self.aggregator(self.x, self.reset, self.state, self.start()[:1])
        self.equal("forward without `initial` differs from initial_state", constants, given)

    def reset_equals_fresh_start(self) -> None:
        reset = self.none.clone()
        reset[:, 7] = True
        late = self.aggregator(self.x, reset, self.state)[:, 7:]
        self.equal(
            "a reset differs from a fresh start", late, self.aggregator(self.x[:, 7:], self.none[:, 7:], self.start())
        )

    def rows_are_independent(self) -> None:
        whole = self.aggregator(self.x, self.reset, self.state)
        order = torch.randperm(_BATCH, generator=self.generator)
        shuffled = self.aggregator(self.x[order], self.reset[order], self.state[order])
        self.equal("the order of the batch matters", shuffled, whole[order])
        alone = [self.aggregator(self.x[[b]], self.reset[[b]], self.state[[b]]) for b in range(_BATCH)]
        self.equal("a row depends on the others", torch.cat(alone), whole)

    def order_is_irrelevant(self) -> None:
        order = torch.randperm(_STEPS, generator=self.generator)
        last, other = (self.aggregator(x, self.none, self.state)[:, -1] for x in (self.x, self.x[:, order]))
        self.equal("the order of steps matters; set permutation_invariant = False", other, last)
