"""Fault: requests name other stop ids than those that were asked for."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from after_import import after_import


def shift_stop_ids(client):
    request_body = client.request_body

    def shifted(prompt_ids, params):
        body = request_body(prompt_ids, params)
        body["sampling_params"]["stop_token_ids"] = [stop - 1 for stop in params.stop_ids]
        return body

    client.request_body = shifted


after_import("rollout.client", shift_stop_ids)
