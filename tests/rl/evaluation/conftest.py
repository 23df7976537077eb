"""Fewer resamples than a user gets, for speed; what is tested holds with both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rl.evaluation import training


@pytest.fixture(autouse=True, scope="package")
def few_draws() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "FIT_DRAWS", 100)
    yield
    patch.undo()
