"""Tests that draws follow their law; all are at level 1e-4 and expect draws of a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

LEVEL = 1e-4


def assert_uniform(draws: Tensor, values: Sequence[int] | Tensor) -> None:
    """Chi-square test that whole numbers are uniform over `values`, and none is anything else.

    Args:
        draws: independent draws, of any shape, at least 20 per value.
        values: the different values, in any order.
    """
    counts = (draws.reshape(-1, 1) == torch.as_tensor(values)).sum(0)
    assert counts.sum() == draws.numel(), "draws are not in `values`, or `values` holds one twice"
    assert draws.numel() >= 20 * len(counts), "too few draws for the chi-square approximation"
    _assert_likely(stats.chisquare(counts.numpy()).pvalue)


def assert_share(successes: Tensor, p: float) -> None:
    """Exact two-sided binomial test that independent trials (a bool tensor) succeed with probability `p`."""
    assert successes.dtype == torch.bool
    _assert_likely(stats.binomtest(int(successes.sum()), successes.numel(), p).pvalue)


def assert_mean(values: Tensor, expected: float) -> None:
    """Two-sided t test that independent values, of any shape, have this expectation; of many, whatever their law."""
    assert values.numel() >= 1000, "too few values for the central limit theorem"
    _assert_likely(stats.ttest_1samp(values.flatten().double().numpy(), expected).pvalue)


def _assert_likely(p_value: float) -> None:
    assert p_value > LEVEL, f"p value {p_value:.1e} at level {LEVEL}"
