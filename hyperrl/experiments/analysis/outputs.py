"""What the outputs of several runs tell about signal and noise (spec/tooling.md section 3.3).

All functions take outputs ``[R, T, O]`` of R runs, and give a curve ``[T]``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def norm(y: Tensor) -> Tensor:
    """Mean over runs of the L2 norm."""
    return y.norm(dim=-1).mean(0)


def normalized_norm(y: Tensor) -> Tensor:
    """Mean over runs of the L2 norm's relative deviation from its mean over steps."""
    norms = y.norm(dim=-1)
    mean = norms.mean(1, keepdim=True)
    return ((norms - mean) / mean).mean(0)


def power(y: Tensor) -> Tensor:
    """Mean square over runs and features."""
    return y.square().mean((0, 2))


def signal_to_noise(signal: Tensor, noise: Tensor) -> Tensor:
    """Power of the outputs for a signal by that of the outputs for noise."""
    return power(signal) / power(noise)


def signal_noise_distance(signal: Tensor, noise: Tensor) -> Tensor:
    """Mean square distance of all runs of noise from the first run of the signal."""
    return power(signal[:1] - noise)


def inverse_variance(noise: Tensor) -> Tensor:
    """One by the variance over runs of the mean over features."""
    return 1 / noise.mean(-1).var(0, correction=0)


def decorrelation(signal: Tensor, antisignal: Tensor) -> Tensor:
    """Mean over features of 1 - correlation over runs of the outputs for a signal and for its opposite.

    Not a number where an output is the same in all runs, as it is at the first step.
    """
    a, b = ((y - y.mean(0)) / y.std(0, correction=0) for y in (signal, antisignal))
    return (1 - (a * b).mean(0)).mean(-1)


def linear_separation(signal: Tensor, antisignal: Tensor) -> Tensor:
    """How well one line tells a signal (1) from its opposite (0): mean of its values for the signal.

    The line is fitted by least squares to the outputs of all runs and steps.
    """
    points, labels = _standardized(signal, antisignal), np.repeat([1.0, 0.0], signal[..., 0].numel())
    points = np.concatenate([points, np.ones((len(points), 1))], 1)
    weights = np.linalg.lstsq(points, labels)[0]
    fitted = points[: len(points) // 2] @ weights
    return torch.from_numpy(fitted).view(signal.shape[:2]).mean(0)


def map_distance(signal: Tensor, antisignal: Tensor, seed: int) -> Tensor:
    """Mean distance of a signal from its opposite in a t-SNE map in two dimensions of all outputs."""
    from sklearn.manifold import TSNE  # slow to import

    points = _standardized(signal, antisignal)
    placed = TSNE(random_state=seed, perplexity=max(1, min(30, len(points) // 4))).fit_transform(points)
    a, b = torch.from_numpy(placed.astype(np.float64)).view(2, *signal.shape[:2], 2)
    return norm(a - b)


def _standardized(signal: Tensor, antisignal: Tensor) -> np.ndarray:
    """All outputs of both ``[2 R T, O]``, every feature with mean 0 and, if it varies, standard deviation 1."""
    points = torch.cat([signal, antisignal]).flatten(0, 1).double().numpy()
    deviation = points.std(0)
    return (points - points.mean(0)) / np.where(deviation > 0, deviation, 1)
