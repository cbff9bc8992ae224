"""Options of the test suite."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; before anything imports torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    parser.addoption("--golden-dir", metavar="DIR", help="golden data (default: ../shared/golden beside the checkout)")
