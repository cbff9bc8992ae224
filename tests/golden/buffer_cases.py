"""Golden vectors of the trajectory buffer (spec/training.md section 7.1)."""

from __future__ import annotations

import torch
from support import Golden
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.data.trajectory_buffer import TrajectoryBuffer

# The reference's name of each entry of a trajectory.
NAMES = {
    keys.PREV_OBSERVATION: "prev_obs",
    keys.OBSERVATION: "next_obs",
    keys.PREV_ACTION: "actions",
    keys.PREV_REWARD: "rewards",
}


class ReferenceOrder:
    """The reference's order of insertion: a block that does not fit behind the index goes to the beginning.

    Args:
        buffer: ours, which would let the block wrap around.
    """

    def __init__(self, buffer: TrajectoryBuffer) -> None:
        self.buffer = buffer
        self.index = self.filled = 0

    def store(self, block: TensorDict) -> None:
        """Writes a block of trajectories; the length of the filled part lags behind (quirk Q20)."""
        if self.index + len(block) > self.buffer.capacity:
            self.filled, self.index = self.index, 0
            self.buffer.position = 0
        self.filled = max(self.filled, self.index)
        self.buffer.store(block)
        self.index += len(block)


def recorded_stream(golden: Golden, with_tasks: bool) -> TensorDict:
    """All steps as one rollout `[P, T]`."""
    done = golden["dones"].transpose(0, 1).bool()
    begins = torch.cat([torch.ones_like(done[:, :1]), done[:, :-1]], 1)
    after = {key: golden[name].transpose(0, 1) for key, name in NAMES.items()}
    root = {keys.TASK: golden["tasks"].transpose(0, 1)} if with_tasks else {}
    return TensorDict({keys.IS_INIT: begins, keys.NEXT: {**after, keys.DONE: done}, **root}, done.shape[:2])


def check_steps(golden: Golden, prefix: str, trajectories: TensorDict, rows: int) -> None:
    """Compares the transitions `[n, H]` with arrays `[H, rows]`, of which the rest is empty."""
    for key, name in NAMES.items():
        golden.check(f"{prefix}_{name}", filled_up(trajectories[key], rows).transpose(0, 1))


def filled_up(value: Tensor, rows: int) -> Tensor:
    """`value [n, ...]` with zeros behind, `[rows, ...]`."""
    return torch.cat([value, value.new_zeros(rows - len(value), *value.shape[1:])])


def run_vae_buffer(golden: Golden) -> None:
    """Running and finished trajectories, with the recorded draws and the reference's order of insertion."""
    meta, with_tasks = golden.meta, "buffer_tasks" in golden
    extra = (keys.TASK,) if with_tasks else ()
    steps, draws = recorded_stream(golden, with_tasks), golden["uniform_draws"].tolist()
    capacity, horizon, envs = meta["capacity"], meta["max_trajectory_len"], meta["num_processes"]
    buffer = TrajectoryBuffer(capacity, horizon, 0, extra=extra)
    order, used, history, all_finished = ReferenceOrder(buffer), 0, [], []
    for step in steps.split(1, 1):
        finished = buffer.finish(step)
        # Those that all end together are one block and take one draw; others are stored one by one.
        blocks = [finished] if len(finished) == envs else [finished[i : i + 1] for i in range(len(finished))]
        for block in blocks:
            if draws[used] <= meta["add_threshold"]:
                order.store(block)
            used += 1
        all_finished.append(finished)
        history.append((order.filled, order.index, used, buffer.position, buffer.running[keys.LENGTH]))
    lengths, indices, drawn, positions, running = zip(*history, strict=True)
    golden.check("buffer_len", torch.tensor(lengths))
    golden.check("insert_idx", torch.tensor(indices))
    assert torch.equal(torch.tensor(positions), golden["insert_idx"] % capacity)
    golden.check("num_draws", torch.tensor(drawn))
    golden.check("running_lengths", torch.stack(running))
    check_steps(golden, "running", buffer.running, envs)
    check_steps(golden, "buffer", buffer.trajectories, capacity)
    golden.check("buffer_lengths", filled_up(buffer.trajectories[keys.LENGTH], capacity))
    if with_tasks:
        golden.check("buffer_tasks", filled_up(buffer.trajectories[keys.TASK], capacity))
    at_once = TrajectoryBuffer(capacity, horizon, 0, extra=extra).finish(steps)
    assert (at_once == torch.cat(all_finished)).all()
    golden.check_all_read({"tasks": "quirk Q15: the reference stores none for processes that are out of step"})
