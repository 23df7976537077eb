"""Everything here takes processes of its own, most of them with a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slow.commands import Household, household


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Household]:
    """An empty household, which has to be empty again at the end."""
    with household(tmp_path) as house:
        yield house
        house.is_empty()
