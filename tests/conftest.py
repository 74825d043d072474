"""What every test gets: paths of the repository."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=1_000, help="how many kills the long tests make")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT
