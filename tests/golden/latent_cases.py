"""Golden vectors of what the policy is given of a latent."""

from __future__ import annotations

import torch
from support import Golden

from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder


def run_latent_for_policy(golden: Golden) -> None:
    """Samples, or means and log variances, as they are or rectified."""
    mean, log_var = golden["latent_mean"], golden["latent_logvar"]
    latent = torch.cat([mean, log_var], -1)
    # The noise that the recorded sample was made from.
    noise = (golden["latent_sample"] - mean) / (log_var / 2).exp()
    for relu in (False, True):
        for sample in (False, True):
            config = EncoderConfig(latent_dim=mean.shape[-1], sample_latent=sample, relu_latent=relu)
            encoder = TrajectoryEncoder(3, 1, config)
            ours = encoder.for_policy(latent, noise if sample else None)
            assert ours.shape[-1] == encoder.policy_dim
            golden.check(f"out_nonlinearity{relu:d}_sample{sample:d}", ours)
    golden.check_all_read({})
