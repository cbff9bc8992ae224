"""What stands in the place of an encoder where the policy is given no latent."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor, nn

from hyperrl import keys


class NoMemory(nn.Module):
    """An encoder that encodes nothing: no parameters, memories and latents of width 0.

    Its interface is that of :class:`hyperrl.modules.encoder.TrajectoryEncoder`.
    """

    latent_dim = policy_dim = noise_dim = state_dim = 0
    memory_layout = "none, 0"

    def act(self, td: TensorDictBase, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """An empty latent and an empty memory ``[B, 0]``."""
        empty = _empty(td)
        return empty, empty

    def attach_memory(self, rollout: TensorDictBase, memory: Tensor | None) -> None:
        """Writes nothing, since there is nothing to start from."""

    def start_memory(self, rollout: TensorDictBase) -> Tensor:
        """An empty memory ``[B, 0]``."""
        return _empty(rollout)[:, 0]

    def encode(self, rollout: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Empty latents at decision time and after the step, ``[B, T, 0]``."""
        empty = _empty(rollout)
        return empty, empty

    def encode_trajectories(self, trajectories: TensorDictBase, bptt_steps: int | None = None) -> Tensor:
        """Empty latents before and after each transition, ``[n, H+1, 0]``."""
        number, steps = trajectories[keys.OBSERVATION].shape[:2]
        return trajectories[keys.OBSERVATION].new_zeros(number, steps + 1, 0)

    def for_policy(self, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        """The empty latent."""
        return latent


def _empty(td: TensorDictBase) -> Tensor:
    """Nothing for each entry of ``td``."""
    return td[keys.OBSERVATION][..., :0]
