"""Two ranks on gloo against one process, on the same batch; and what several ranks do when one has trouble."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.parallel import ONE
from tests.rl import ranks
from tests.rl.ranks import CASES, LAYOUTS, RESUMED, finish, started


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks wrote what came of every case; the checkpoints of one process are made before."""
    home = tmp_path_factory.mktemp("ranks")
    for case in RESUMED:
        learner = ranks.make(ONE, CASES[case])
        learner.step(ranks.first_groups(), 0)
        ranks.saved(learner, home / f"{case} of one")
    with started([str(home)], 2, home) as processes:
        codes, said = finish(processes, home)
    assert codes == [0, 0], said
    return home


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_make_the_gradients_and_weights_of_one_process(two_ranks: Path, case: str, layout: str) -> None:
    one, two = ranks.one_step(ONE, CASES[case]), load_file(two_ranks / f"{case} {layout}.safetensors")
    assert one.keys() == two.keys()
    bound = 1e-10 if CASES[case]["dtype"] == "float64" and "lora" not in CASES[case] else 1e-5  # adapters are fp32
    for name, tensor in one.items():
        largest = float(tensor.abs().nan_to_num().max())
        scale = max(1.0, largest) if name.startswith("figure.") else largest  # a loss may well be near 0
        assert torch.allclose(tensor, two[name], rtol=0, atol=bound * scale, equal_nan=True), name
    moved = [name for name in one if name.startswith("grad.")]
    assert max(float(one[name].abs().max()) for name in moved) > 1e-3


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("source", ["one", *LAYOUTS])
@pytest.mark.parametrize("layout", ["one", *LAYOUTS])
def test_a_checkpoint_of_any_layout_goes_on_in_any_other(two_ranks: Path, case: str, source: str, layout: str) -> None:
    learner = ranks.make(ONE, CASES[case])
    learner.step(ranks.first_groups(), 0)
    learner.step(ranks.second_groups(), 1)
    wanted = dict(learner.policy.named_parameters())
    root = two_ranks / f"{case} of {source}"
    file = two_ranks / f"{case} of {source} in {layout}.safetensors"
    found = ranks.resumed(ONE, CASES[case], root) if layout == "one" else load_file(file)
    for name, parameter in wanted.items():
        gap = (parameter.detach() - found[name]).abs()
        # Adapters are fp32, and AdamW makes a whole step of a gradient that is nothing but rounding: so the mean, which
        # is 1e-6 where both steps moved an element by a few 1e-2
        gap, bound = (gap.max(), 1e-6) if parameter.dtype == torch.float64 else (gap.mean(), 1e-5)
        assert float(gap) < bound, name


def test_trouble_of_one_rank_is_every_ranks_and_the_next_step_works(two_ranks: Path) -> None:
    for rank, words in enumerate(("rank 0 does not want it", "rank 0 refused the step")):
        figures = json.loads((two_ranks / f"troubles-{rank}.json").read_text())
        assert figures == {layout: [1.0, words, 1.0] for layout in LAYOUTS}
