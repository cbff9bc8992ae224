"""Checks of public contracts, for parts that are written outside this library as much as for its own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hyperrl.contracts.aggregator import AggregatorContract
from hyperrl.contracts.encoder import EncoderContract
from hyperrl.contracts.policy import PolicyContract
from hyperrl.modules.aggregators import Aggregator
from hyperrl.modules.encoder import TrajectoryEncoder
from hyperrl.modules.policy import Policy


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
    check = AggregatorContract(make(width).double(), seed, tolerance)
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
    carried memory, acting against the re-encoded rollout, whole trajectories with and without truncated gradients,
    independence of the rows of a batch and of their order. In single precision, autocast has to change nothing.

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
    check.trajectories_equal_sequences()
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
