"""reasoning-gym's puzzles: gold answers of every data set, answers that are no answers, and answers that attack."""
# ruff: noqa: RUF001

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rewards import puzzle
from rewards.errors import BadInput
from rewards.pool import RewardPool
from rewards.puzzle import CHECKS, Puzzle, integrates, read_answer, rules, same_polynomial
from rewards.tasks import gym as gym_task
from rewards.tasks import is_task, list_tasks, load_task
from rewards.types import Problem

NO_REFERENCE = {"boxnet", "rush_hour"}
OTHERS_FIT = {"graph_color", "propositional_logic", "tower_of_hanoi"}  # another item's answer may be a right one
installed = pytest.mark.skipif(not puzzle.installed(), reason="reasoning-gym is not installed here")
DANGEROUS = (  # scorers that execute the answer, and those that any text, a prefix or a suffix satisfies
    *("string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown", "puzzle24", "simple_integration"),
    *("intermediate_integration", "polynomial_multiplication", "game_of_life_halting", "coin_flip", "letter_jumble"),
    *("prime_factorization", "spell_backward", "word_sorting", "figlet_font"),
)
Metadata = dict[str, Any]


def made(name: str, gold: str = "", **metadata: Any) -> Problem:
    """A problem of a data set that was not generated."""
    return Problem("p", f"gym:{name}", "?", gold, "?", meta={"dataset": name, "config": {}, "metadata": metadata})


def right(name: str, answer: str, gold: str = "", partial: bool = False, **metadata: Any) -> bool:
    return Puzzle(partial)(f"<answer>{answer}</answer>", made(name, gold, **metadata)).correct


@installed
def test_the_table_names_every_data_set_but_the_composite_one_and_only_fields_and_checks_that_exist() -> None:
    code = (
        "import json, reasoning_gym.composite as c; print(json.dumps(list(c.create_dataset.__globals__['DATASETS'])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(rules()) == set(json.loads(done.stdout)) - {"composite"}
    assert all(rule.check in CHECKS and re.compile(rule.like) for rule in rules().values())


def test_scorers_that_run_the_answer_or_can_be_gamed_are_never_called() -> None:
    for name in DANGEROUS:
        assert not rules()[name].partial
        assert rules()[name].check != "library"


@installed
@pytest.mark.slow
@pytest.mark.parametrize("name", rules())
def test_gold_is_right_and_nothing_and_another_gold_are_not(name: str) -> None:
    task = load_task(f"gym:{name}")
    problems = [task.problem(index, "train") for index in range(20)]
    problems = [Problem(**json.loads(json.dumps(vars(problem)))) for problem in problems]  # as a worker gets them
    reward = Puzzle()
    if name in NO_REFERENCE:
        assert all(problem.answer is None for problem in problems)
        assert not any(reward("<answer>A+1</answer>", problem).correct for problem in problems)
        return
    for problem, other in zip(problems, problems[1:] + problems[:1], strict=True):
        gold = task.gold(problem)
        score = reward(gold, problem)
        assert score.correct, f"{problem.answer}: {score.detail}"
        assert reward(f"<think>\nno idea</think>\n{gold}", problem).correct
        assert not any(reward(text, problem).correct for text in ("", "<answer></answer>", "<answer> \n</answer>", "?"))
        if other.answer != problem.answer and name not in OTHERS_FIT:
            assert not reward(task.gold(other), problem).correct, f"{other.answer} for {problem.answer}"


HOSTILE = [
    "open({canary!r}, 'w').close()",
    "[open({canary!r}, 'w')]",
    "__import__('os').system('touch {canary}')",
    "().__class__.__base__.__subclasses__()",
    "9**9**9",
    "9**9**9**9**9",
    "(" * 2000,
    "[" * 2000,
    "factorial(10**9)",
    "1e999999999",
    "nan",
    "inf",
    "x" * 1_000_000,
    "1," * 500_000,
    "\0",
    "R" + "9" * 30,
    "A+99999999999",
    '{{"a": 1}}',
    "Integral(x, x)",
]


@installed
@pytest.mark.parametrize("name", [n if n in DANGEROUS else pytest.param(n, marks=pytest.mark.slow) for n in rules()])
def test_no_hostile_answer_runs_hangs_or_is_right(name: str, tmp_path: Path) -> None:
    problem, canary = load_task(f"gym:{name}").problem(0, "train"), tmp_path / "canary"
    for partial in (False, True):
        reward = Puzzle(partial, name)
        for text in HOSTILE:
            if partial and (len(text) > 1000 or rules()[name].check in ("json",)):
                continue  # the library's similarity is quadratic: the pool's limit ends it
            start = time.perf_counter()
            try:
                score = reward(f"<answer>{text.format(canary=str(canary))}</answer>", problem)
            except RecursionError:  # the pool counts it as a limit that the text hit
                continue
            assert not score.correct, f"{text[:40]} for {problem.answer!r}"
            assert 0 <= (score.value or 0) < 1
            assert time.perf_counter() - start < 1
    assert not canary.exists()


@installed
async def test_a_power_tower_costs_the_pool_no_worker() -> None:
    tasks = [load_task(f"gym:{name}") for name in ("countdown", "simple_integration", "spiral_matrix")]
    async with RewardPool(1) as pool:
        for task in tasks:
            problem = task.problem(0, "train")
            assert (await pool.score("a", task.gold(problem), problem)).correct
            score = await pool.score("b", "<answer>9**9**9</answer>", problem)
            assert (score.correct, score.status) == (False, score.status)
            assert score.status in ("wrong", "unparsed")


TABLE: list[tuple[str, str, str, Metadata, bool]] = [
    ("gcd", "12", "12", {}, True),
    ("gcd", " 12.0. ", "12", {}, True),
    ("gcd", "12 or 13", "12", {}, False),
    ("gsm_symbolic", "$1,200", "1200", {}, True),
    ("gsm_symbolic", "5 red apples", "5", {}, True),
    ("gsm_symbolic", "-5", "5", {}, False),
    ("gsm_symbolic", "5 and then 6", "5", {}, False),
    ("game_of_life_halting", "True", "False", {}, False),
    ("game_of_life_halting", "anything", "True", {}, False),
    ("game_of_life_halting", "false", "False", {}, True),
    ("coin_flip", "0", "0.0008544921875", {}, False),
    ("coin_flip", "7/8192", "0.0008544921875", {}, True),
    ("coin_flip", "0.3125", "0.3125", {}, True),
    ("coin_flip", "0.31", "0.3125", {}, False),
    ("countdown", "2 + 3*4", "3*4 + 2", {"numbers": [4, 3, 2], "target": 14}, True),
    ("countdown", "14", "3*4 + 2", {"numbers": [4, 3, 2], "target": 14}, False),
    ("countdown", "2 + 3*4 + 0", "3*4 + 2", {"numbers": [4, 3, 2], "target": 14}, False),
    ("puzzle24", "(7 - 8/8)*4", "4*(7 - 8/8)", {"numbers": [7, 8, 8, 4]}, True),
    ("puzzle24", "6*4*1*1", "4*(7 - 8/8)", {"numbers": [7, 8, 8, 4]}, False),
    ("prime_factorization", "2×2 × 3", "2 × 2 × 3", {}, True),
    ("prime_factorization", "3 * 2 * 2", "2 × 2 × 3", {}, True),
    ("prime_factorization", "4 × 3", "2 × 2 × 3", {}, False),
    ("prime_factorization", "two", "2 × 2 × 3", {}, False),
    ("bitwise_arithmetic", "255", "0xff", {}, True),
    ("bitwise_arithmetic", "0xfe + 1", "0xff", {}, False),
    ("number_sorting", "[-1, 2.50]", "['-1', '2.5']", {}, True),
    ("number_sorting", "['-1', '2.6']", "['-1', '2.5']", {}, False),
    ("number_sorting", "['-1', '2.5', '3']", "['-1', '2.5']", {}, False),
    ("game_of_life", "[[0, 1], [1, 0]]", "[[0,1],[1,0]]", {}, True),
    ("game_of_life", "[[0, 1], [1, 0], [0, 0]]", "[[0,1],[1,0]]", {}, False),
    ("codeio", '{"a": {"n": "3"}}', '{"a": {"n": 3}}', {}, True),
    ("codeio", '{"a": {"n": 4}}', '{"a": {"n": 3}}', {}, False),
    ("spiral_matrix", "1  2 3", "1 2 3", {}, True),
    ("spiral_matrix", "[1, 2, 3]", "1 2 3", {}, False),
    ("sudoku", "```\n1 2\n2 1 \n```", "1 2\n2 1", {}, True),
    ("sudoku", "1 2 2 1", "1 2\n2 1", {}, False),
    ("n_queens", "_ Q\nQ _", "Q _\n_ Q", {"valid_answers": ["Q _\n_ Q", "_ Q\nQ _"]}, True),
    ("word_sorting", "a, b, c", "a, b", {}, False),
    ("word_sorting", "a,b", "a, b", {}, True),
    ("spell_backward", "olleh and so on", "olleh", {}, False),
    ("knights_knaves", "Zoey is a knave and Jack is a knight", "Jack is a knight, and Zoey is a knave.", {}, True),
    ("knights_knaves", "Jack is a knight knave, Zoey is a knave", "Jack is a knight, and Zoey is a knave.", {}, False),
    ("polynomial_multiplication", "2 + 3*x + x*x", "x**2 + 3*x + 2", {}, True),
    ("polynomial_multiplication", "(x + 1)*(x + 2)", "x**2 + 3*x + 2", {}, False),
    ("simple_integration", "x**2 + 7", "x**2 + C", {"integrand": "2*x", "variable": "x"}, True),
    ("simple_integration", "x**2 + x", "x**2 + C", {"integrand": "2*x", "variable": "x"}, False),
    ("survo", "1 4 5\n3 2 5\n4 6 10", "1 4 5\n3 2 5\n4 6 10",
     {"puzzle": [[0, 0, 5], [0, 0, 5], [4, 6, 10]], "candidate_numbers": [1, 4, 3, 2]}, True),
    ("survo", "2 3 5\n2 3 5\n4 6 10", "1 4 5\n3 2 5\n4 6 10",
     {"puzzle": [[0, 0, 5], [0, 0, 5], [4, 6, 10]], "candidate_numbers": [1, 4, 3, 2]}, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "gold", "metadata", "expected"), TABLE)
def test_answers_by_hand(name: str, answer: str, gold: str, metadata: Metadata, expected: bool) -> None:
    assert right(name, answer, gold, **metadata) is expected


HANOI = {"num_disks": 1, "num_pegs": 3, "start_peg": 1, "target_peg": 3, "solution_length": 1}
BY_LIBRARY: list[tuple[str, str, str, Metadata, bool]] = [
    ("complex_arithmetic", "3 + 4i", "3.0 + 4.0i", {"result": [3.0, 4.0]}, True),
    ("complex_arithmetic", "nan", "3.0 + 4.0i", {"result": [3.0, 4.0]}, False),
    ("fraction_simplification", "$\\frac{3}{4}$", "3/4", {"simplified_numerator": 3, "simplified_denominator": 4,
     "numerator": 6, "denominator": 8}, True),
    ("fraction_simplification", "\\frac{3}{4} or \\frac{1}{2}", "3/4", {"simplified_numerator": 3,
     "simplified_denominator": 4, "numerator": 6, "denominator": 8}, False),
    ("fraction_simplification", "6/8", "3/4", {"simplified_numerator": 3, "simplified_denominator": 4, "numerator": 6,
     "denominator": 8}, False),
    ("tower_of_hanoi", "Move disk 1 from Peg 1 to Peg 2\nMove disk 1 from Peg 2 to Peg 3", "", HANOI, True),
    ("tower_of_hanoi", "Move disk 1 from Peg 1 to Peg 2", "", HANOI, False),
    ("propositional_logic", "(P ∨ Q)", "Q", {"premises": ["P", "(P → Q)"], "variables": ["P", "Q"]}, True),
    ("propositional_logic", "P", "Q", {"premises": ["P", "(P → Q)"], "variables": ["P", "Q"]}, False),
    ("propositional_logic", "a ∨ b ∨ c", "Q", {"premises": ["P", "(P → Q)"], "variables": ["P", "Q"]}, False),
    ("time_intervals", "5 days", "5 days", {"task_type": "date"}, True),
    ("time_intervals", "5 or 6 days", "5 days", {"task_type": "date"}, False),
]  # fmt: skip


@installed
@pytest.mark.parametrize(("name", "answer", "gold", "metadata", "expected"), BY_LIBRARY)
def test_answers_by_the_library_behind_a_pattern(
    name: str, answer: str, gold: str, metadata: Metadata, expected: bool
) -> None:
    assert right(name, answer, gold, **metadata) is expected


@installed
def test_partial_credit_only_where_asked_for_and_never_correct() -> None:
    problem = made("tower_of_hanoi", "", **HANOI)
    response = "<answer>Move disk 1 from Peg 1 to Peg 2</answer>"
    assert Puzzle()(response, problem).value == 0
    score = Puzzle(partial=True)(response, problem)
    assert (score.value, score.correct) == (0.05, False)
    assert Puzzle(partial=True)("<answer>[1, 2]</answer>", made("spiral_matrix", "1 2")).value == 0


@pytest.mark.parametrize(
    ("response", "lines", "expected"),
    [
        ("<think>a</think>\n1 2\n3 4", True, "1 2\n3 4"),
        ("<think>a</think>\n1 2\n3 4", False, "3 4"),
        ("So:\n<answer>\n1 2\n3 4\n</answer> Done.", True, "1 2\n3 4"),
        ("<answer>```text\n1 2\n```</answer>", True, "1 2"),
        ("<answer>1</answer> or <answer>2</answer>", False, None),
        ("<answer>{}}{</answer>", False, "{}}{"),
        ("<think><answer>1</answer>", False, None),
    ],
)
def test_where_the_answer_is_read(response: str, lines: bool, expected: str | None) -> None:
    assert read_answer(response, made("gcd"), lines) == expected


@pytest.mark.parametrize(
    ("answer", "integrand", "expected"),
    [
        ("x*asin(3*x) + sqrt(1 - 9*x**2)/3 + C", "asin(3*x)", True),
        ("log(x)", "1/x", True),
        ("-2*(-3*x - 10)**(3/2)/9", "sqrt(-3*x - 10)", True),
        ("E**(2*x)/2", "exp(2*x)", True),
        ("C*x**2/2", "x", False),
        ("x**2/2 + C*x", "x", False),
        ("x**3/3 + 0.0000000001*x", "x**2", False),
        ("Integral(x, x)", "x", False),
        ("9**9**9", "x", False),
        ("exp(exp(exp(exp(exp(x)))))", "x", False),
    ],
)
def test_antiderivatives_are_compared_by_their_derivative(answer: str, integrand: str, expected: bool) -> None:
    assert integrates(answer, integrand, "x") is expected


def test_polynomials_are_compared_after_multiplication_alone() -> None:
    assert same_polynomial("x*y*z - 4", "-4 + z*y*x")
    assert not same_polynomial("x*y - 4", "-4 + z*y*x")
    assert not same_polynomial("(x)", "x")
    assert not same_polynomial("9**9**9", "x")


@installed
def test_items_depend_on_seed_index_and_split_alone_and_splits_share_no_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("list_functions", "word_ladder", "ransom_note", "pool_matrix", "polynomial_multiplication")
    before = [vars(load_task(f"gym:{name}", 3).problem(k, "train")) for name in names for k in range(3)]
    monkeypatch.setattr(gym_task, "_running", [])  # another process
    assert [vars(load_task(f"gym:{name}", 3).problem(k, "train")) for name in names for k in range(3)] == before
    task = load_task("gym:gcd?max_numbers=2&min_value=1&max_value=9")
    keys = {split: {task.problem(k, split).key for k in range(40)} for split in ("train", "val", "test")}
    assert not keys["train"] & keys["test"]
    assert not keys["val"] & keys["test"]
    assert load_task("gym:gcd", 1).problem(0, "train").prompt != load_task("gym:gcd", 2).problem(0, "train").prompt


@installed
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("gym:no-such-task", "unknown task"),
        ("gym:sudoko", "did you mean 'sudoku'?"),
        ("gym:composite", "unknown task"),
        ("gym:sudoku?min_emty=5", "did you mean 'min_empty'?"),
        ("gym:sudoku?min_empty=-5", "refuses"),
        ("gym:sudoku?seed=3", "unknown parameter 'seed'"),
        ("gym:gcd?min_numbers=[", "YAML"),
    ],
)
def test_a_wrong_name_or_parameter_is_refused_in_one_line(spec: str, says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)) as refused:
        load_task(spec)
    assert "\n" not in str(refused.value)


@installed
def test_a_data_set_without_references_has_no_gold_that_is_right() -> None:
    task = load_task("gym:rush_hour")
    problem = task.problem(0, "train")
    assert Puzzle()(task.gold(problem), problem).status == "unparsed"


def test_the_reward_names_a_problem_that_is_not_its_own() -> None:
    with pytest.raises(BadInput, match="'p'"):
        Puzzle()("x", Problem("p", "t", "?", "x", "?"))


def test_without_the_library_tasks_are_off_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(puzzle, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="reasoning-gym is not installed"):
        load_task("gym:sudoku")
    assert not [row for row in list_tasks() if row["name"].startswith("gym:")]
    assert "gym: tasks are off" in capsys.readouterr().err
    assert is_task("gym:sudoku")


def test_the_list_of_tasks_loads_nothing_of_the_library() -> None:
    code = "import sys; from rewards.tasks import list_tasks; print(len(list_tasks()), 'reasoning_gym' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"
