"""The process that generates `gym:` problems: a JSON request a line in, an entry out. Never run by hand."""

import json
import random
from typing import Any

from rewards.errors import BadInput, one_line
from rewards.puzzle import Puzzle, make_dataset, rules
from rewards.types import Problem
from rewards.worker import take_pipes

TRIES = 200


def main() -> None:
    """Serve until the pipe ends."""
    requests, replies = take_pipes()
    for line in requests:
        try:
            reply = serve(**json.loads(line))
        except BadInput as error:
            reply = {"bad": str(error)}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def serve(dataset: str, config: dict[str, Any], draw: int) -> dict[str, Any]:
    """The entry of a draw: the first whose reference answer is judged right, where the data set has them."""
    source, place = make_dataset(dataset, json.dumps(config)), rules()[dataset].reference
    rng, last = random.Random(draw), ""
    for _ in range(TRIES):
        try:
            entry = _entry(source, rng)
        except Exception as error:  # the library gives up on some seeds
            last = f"{type(error).__name__}: {error}"
            continue
        found = {**entry["metadata"], "answer": entry["answer"]}.get(place)
        entry["answer"] = answer = found if found is None or isinstance(found, str) else json.dumps(found)
        meta = {"dataset": dataset, "config": config, "metadata": entry["metadata"]}
        problem = Problem("", dataset, entry["question"], answer, key="", meta=meta)
        if not place or Puzzle()(f"<answer>{answer}</answer>", problem).correct:
            return entry
        last = f"its reference answer {answer!r} is not right"
    raise BadInput(one_line(f"task 'gym:{dataset}': no problem in {TRIES} draws; {last}"))


def _entry(source: Any, rng: random.Random) -> dict[str, Any]:
    """One entry, as JSON would give it back; the generators that the library shares are set for it."""
    source.seed = source.config.seed = rng.getrandbits(31)
    random.seed(source.seed)
    entry = source[rng.randrange(source.size)]
    return json.loads(json.dumps({name: entry[name] for name in ("question", "answer", "metadata")}, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return value.tolist() if hasattr(value, "tolist") else str(value)


if __name__ == "__main__":
    main()
