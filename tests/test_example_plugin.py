"""examples/plugin is a package: it installs, its reward has a name then, its own test passes, its words hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "examples/plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed, from a copy, without the network."""
    copy, site = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("site")
    for path in PLUGIN.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = copy / path.relative_to(PLUGIN)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", str(site), str(copy)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return site


def run(site: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=PLUGIN, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_test_passes(site: Path) -> None:
    assert "6 passed" in run(site, "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(PLUGIN), "tests")


def test_its_reward_is_listed_with_package_and_version(site: Path) -> None:
    rows = json.loads(run(site, "rl.cli", "rewards", "list", "--json"))
    source = "ponder-plugin-example 1.0 (ponder_plugin_example:reversed_answer)"
    assert {"name": "reversed_answer", "source": source} in rows


def test_it_is_checked_and_scores_by_name(site: Path) -> None:
    assert "good" in run(site, "rl.cli", "rewards", "check", "reversed_answer", "--task", "words.jsonl", "-n", "3")
