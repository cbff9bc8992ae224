"""Meta-level numbers: the return of each episode of a task, which is what adaptation looks like."""

from __future__ import annotations

import torch
from torch import Tensor


def adaptation_metrics(returns: Tensor, success: Tensor | None = None) -> dict[str, float]:
    """Summarises complete meta-episodes (spec/training.md section 9).

    Args:
        returns: raw return of each episode of each task ``[N, K]``.
        success: steps with success of each episode ``[N, K]``; none where the environment has no such flag.

    Returns:
        ``return_episode_k`` and its unbiased standard deviation ``return_std_episode_k`` for k = 1..K, their sum
        ``return`` (the meta-episode return), its standard error ``return_sem``, and with ``success`` the mean number
        of successful steps ``success_mean``, the fraction of episodes with any, ``success_fraction``, and that fraction
        of the k-th episodes, ``success_episode_k``.
    """
    returns = returns.double()
    total, deviation = returns.sum(1), returns.std(0)
    metrics = {f"return_episode_{k}": value for k, value in enumerate(returns.mean(0).tolist(), 1)}
    metrics |= {f"return_std_episode_{k}": value for k, value in enumerate(deviation.tolist(), 1)}
    metrics["return"] = total.mean().item()
    metrics["return_sem"] = (total.std() / len(total) ** 0.5).item()
    if success is not None:
        metrics["success_mean"] = success.double().mean().item()
        any_step = (success > 0).double()
        metrics["success_fraction"] = any_step.mean().item()
        metrics |= {f"success_episode_{k}": value for k, value in enumerate(any_step.mean(0).tolist(), 1)}
    return metrics


class EpisodeReturns:
    """Sums rewards into the episodes of tasks, across rollouts of any length.

    Args:
        num_envs: number of environments ``B``.
        episodes_per_task: number of episodes ``K``.
        device: where the rollouts live.
    """

    def __init__(self, num_envs: int, episodes_per_task: int, device: torch.device | str = "cpu") -> None:
        self.returns = torch.zeros(num_envs, episodes_per_task, device=device)
        self.episode = torch.zeros(num_envs, dtype=torch.long, device=device)

    def update(self, reward: Tensor, episode_done: Tensor, done: Tensor) -> Tensor:
        """Adds one rollout.

        Args:
            reward: what to sum ``[B, T]``: rewards, or successes.
            episode_done: ends of inner episodes ``[B, T]``; every end of a task is one.
            done: ends of tasks ``[B, T]``.

        Returns:
            Sums per episode of all tasks that ended in this rollout, ``[N, K]``, environments in order.
        """
        envs, episodes = self.returns.shape
        task = done.long().cumsum(1) - done.long()
        ended = episode_done.long().cumsum(1) - episode_done.long() + self.episode.unsqueeze(1)
        # Episodes counted from each task's first step: the count at that step is the largest seen at a task's start.
        first = torch.cat([torch.zeros_like(done[:, :1]), done[:, :-1]], 1)
        episode = ended - torch.where(first, ended, 0).cummax(1).values
        number = int(task.max()) + 2
        sums = torch.zeros(envs, number, episodes, dtype=reward.dtype, device=reward.device)
        sums[:, 0] = self.returns
        row = torch.arange(envs, device=reward.device).unsqueeze(1).expand_as(task)
        sums.index_put_((row, task, episode.clamp_max(episodes - 1)), reward, accumulate=True)
        finished = done.sum(1)
        index = torch.arange(envs, device=reward.device)
        self.returns = sums[index, finished]
        last = episode[:, -1] + episode_done[:, -1].long()
        self.episode = torch.where(done[:, -1], 0, last)
        return sums[torch.arange(number, device=reward.device) < finished.unsqueeze(1)]

    def state_dict(self) -> dict[str, Tensor]:
        """The unfinished tasks' sums."""
        return {"returns": self.returns, "episode": self.episode}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continues from :meth:`state_dict`."""
        self.returns = state["returns"].to(self.returns, copy=True)
        self.episode = state["episode"].to(self.episode, copy=True)
