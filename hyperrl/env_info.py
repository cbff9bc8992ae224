"""What a model has to know of the environment that it is built for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ActionSpace:
    """What the actor has to put out.

    Attributes:
        dim: width of a continuous action; 1 for discrete ones.
        num_actions: number of discrete actions; none if actions are continuous.
        low: smallest value of each dimension of a continuous action, where there is one.
        high: largest value of each dimension.
    """

    dim: int
    num_actions: int | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @property
    def discrete(self) -> bool:
        """Whether actions are indices."""
        return self.num_actions is not None


@dataclass(frozen=True)
class EnvInfo:
    """Sizes of an environment.

    Attributes:
        obs_dim: width of observations.
        action_dim: width of actions, 1 for discrete ones.
        num_actions: number of discrete actions; none if actions are continuous.
        horizon: the longest task that a memory will meet, in steps.
        task_dim: width of the description of a task.
        num_tasks: number of tasks that have an id; 0 where they have none.
        num_states: number of states that have an id; 0 where they have none.
        belief_dim: width of the exact belief; 0 where there is none.
        action_low: smallest value of each dimension of a continuous action.
        action_high: largest value of each dimension.
    """

    obs_dim: int
    action_dim: int
    num_actions: int | None
    horizon: int
    task_dim: int = 0
    num_tasks: int = 0
    num_states: int = 0
    belief_dim: int = 0
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None

    @property
    def actions(self) -> ActionSpace:
        """The action space."""
        return ActionSpace(self.action_dim, self.num_actions, self.action_low, self.action_high)
