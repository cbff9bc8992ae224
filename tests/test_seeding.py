"""Seeds: one for a run, and unrelated ones for everything that draws."""

from __future__ import annotations

import itertools

import pytest
import torch

from hyperrl.seeding import derive_seed, run_seed


def test_every_argument_makes_a_difference() -> None:
    seeds = [derive_seed(*args) for args in itertools.product((0, 1, 12), ("train", "val"), (0, 1), (0, 1, 10))]
    assert len(set(seeds)) == len(seeds)


def test_seeds_do_not_depend_on_the_process() -> None:
    assert derive_seed(73, "train") == 3303777419319509542


def test_generators_take_them() -> None:
    for index in range(100):
        seed = derive_seed(0, "val", index=index)
        assert 0 <= seed < 2**63
        torch.Generator().manual_seed(seed)


def test_the_runs_seed_is_lightnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    assert run_seed() == 12
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert run_seed() == 0
