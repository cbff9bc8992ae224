"""Options of the test suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    parser.addoption("--golden-dir", metavar="DIR", help="golden data (default: ../shared/golden beside the checkout)")
