"""Fault: after a push, the server's output head goes on multiplying by the old weights."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from after_import import after_import


def forget_heads(plugin):
    plugin.refresh_heads = lambda model: None


after_import("rollout.server.weights_plugin", forget_heads)
