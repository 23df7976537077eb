"""Fault: the server's log-probabilities ignore the temperature, the learner's do not."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from after_import import after_import


def ask_for_raw(module):
    server_argv = module.server_argv

    def raw(spec, hardware):
        argv, env = server_argv(spec, hardware)
        return ["raw_logprobs" if word == "processed_logprobs" else word for word in argv], env

    module.server_argv = raw


after_import("rollout.server.argv", ask_for_raw)
