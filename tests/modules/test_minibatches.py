"""Minibatches: equal parts of a permutation."""

from __future__ import annotations

import pytest
import torch

from hyperrl.modules.minibatches import permuted_chunks


def chunks(size: int, number: int, seed: int = 0) -> list[torch.Tensor]:
    return list(permuted_chunks(size, number, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(("size", "number"), [(16, 4), (16, 1), (16, 16), (960, 7), (10, 3)])
def test_equal_parts_without_repetition(size: int, number: int) -> None:
    parts = chunks(size, number)
    assert [len(part) for part in parts] == [size // number] * number
    assert len(set(torch.cat(parts).tolist())) == size // number * number
    assert set(torch.cat(parts).tolist()) <= set(range(size))


def test_the_generator_decides_the_permutation() -> None:
    assert all(torch.equal(a, b) for a, b in zip(chunks(64, 4), chunks(64, 4), strict=True))
    assert not torch.equal(chunks(64, 4)[0], chunks(64, 4, seed=1)[0])


def test_each_epoch_is_permuted_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat(list(permuted_chunks(64, 4, generator))) for _ in range(2))
    assert not torch.equal(first, second)


def test_every_item_is_equally_likely_to_be_dropped() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = torch.zeros(10)
    for _ in range(2000):
        kept[torch.cat(list(permuted_chunks(10, 3, generator)))] += 1
    # 1 of 10 is dropped each time: 1800 times kept, standard deviation 13.4; five of them on either side.
    assert (kept - 1800).abs().max() < 67
