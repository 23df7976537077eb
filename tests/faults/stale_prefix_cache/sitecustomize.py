"""Fault: a push leaves the prefix cache, keys and values of the old weights, in place."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from after_import import after_import


def keep_cache(control):
    pause = control.ServerControl.pause
    control.ServerControl.pause = lambda self, clear_cache=True: pause(self, clear_cache=False)


after_import("rollout.client", keep_cache)
