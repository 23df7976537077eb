"""Runs that are read only: made once for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.report.build import read_record, render
from rl.rundir import RunDir
from tests.rl.report.runs import write_letters_run, write_run

HOSTILE = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"></pre>\u202e\x07 end"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of three steps: four points on the training axis, four budgets, every file."""
    return write_run(tmp_path_factory.mktemp("finished"), 3)


@pytest.fixture(scope="session")
def finished_page(finished: RunDir) -> str:
    """Its report."""
    return render(read_record(finished.path))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose chains, prompt and verdict are HOSTILE."""
    return write_letters_run(tmp_path_factory.mktemp("hostile"), HOSTILE)


@pytest.fixture
def unfinished(tmp_path: Path) -> RunDir:
    """A run of which one step of two is done."""
    return write_run(tmp_path, 1, finished=False)
