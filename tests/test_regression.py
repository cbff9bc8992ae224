"""Nothing that a user can see changes unnoticed: vectors of our own, made by `tests/data/generate.py`.

They say that behaviour is what it was; that it is right, the golden data say, where they are available.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"
SCENARIOS: dict[str, Callable[[], dict[str, np.ndarray]]] = runpy.run_path(str(DATA / "generate.py"))["SCENARIOS"]
TOLERANCE = 1e-4  # sums in another order on another machine, through an update


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("name", SCENARIOS)
def test_vectors_are_reproduced(name: str) -> None:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as recorded:
        expected = {key: recorded[key] for key in recorded.files}
    found = SCENARIOS[name]()
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)


def test_every_file_has_a_scenario() -> None:
    assert {path.stem for path in DATA.glob("*.npz")} == set(SCENARIOS)
