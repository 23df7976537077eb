"""Verifiers, tasks and the pool that scores. What they know by name, and what they ask, stands in the YAML files."""

from functools import cache
from pathlib import Path
from typing import Any


@cache
def table(name: str) -> Any:
    """The data file `name`.yaml of this package."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text("utf-8"))
