from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answer import after_thinking, boxed, final_answer, final_answers, with_open_tag
from rewards.types import Prompt

TABLE = [
    (r"\boxed{4}", "4"),
    (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
    (r"\boxed{a \} b}", r"a \} b"),
    (r"\boxed{3} and again \boxed{ 3 }", "3"),
    (r"\boxed{3} or \boxed{4}", None),
    (r"\boxed{\boxed{4}}", r"\boxed{4}"),
    (r"\boxed{}" + "\n7", "7"),
    ("<answer> 42 </answer>", "42"),
    ("<answer>1</answer><answer>2</answer>", None),
    ("<answer>1<answer>2<3</answer>", "2<3"),
    ("The answer is " + "x" * 200, "x" * 200),
    ("The answer is " + "x" * 201, None),
    (r"<answer>\boxed{5}</answer>", "5"),
    ("I add.\n#### 72", "72"),
    ("# a heading\n##### 9", "##### 9"),
    ("The answer is 12.", "12"),
    ("Well, the final answer is: 3.5. Done!", "3.5"),
    ("Final answer: $7$", "7"),
    ("The answer is 4. No, the answer is 5.", "5"),
    ("The answer to the second question is $x$, I think.", "$x$, I think"),
    ("**Answer:** 5", "5"),
    ("**Final Answer**: $5$", "5"),
    ("Final Answer: The final answer is $42$. I hope it is correct.", "42"),
    ("**Final Answer:** The answer to it is: 42", "42"),
    ("The answer is 3 or the answer is 4.", None),
    ("The answer is\n\\[\n5\n\\]", "5"),
    ("So:\n$$\n5\n$$", "5"),
    (r"\fbox{4}", "4"),
    (r"It is \boxed{3}. Wait, it is \boxed{4}.", "4"),
    (r"It is \boxed{3}! $\boxed{4}$", "4"),
    ("\\boxed{3}\n\nTherefore \\boxed{4}", "4"),
    ("$\\boxed{3}$\n\n$\\boxed{4}$", None),
    (r"$x=\boxed{3}$ and then $y=\boxed{4}$.", None),
    (r"It is \boxed{3}. Now \boxed{4} or \boxed{5}.", None),
    ("#### 3\n#### 4", None),
    ("13 - ( 10 - 2 )", "13 - ( 10 - 2 )"),
    ("Some words first\n**17**", "17"),
    (r"\( 8 \)", "8"),
    ("`x`.", "x"),
    ("I believe that it might be 4.", None),
    ("", None),
    (" \n\t ", None),
    ("x" * 201, None),
    ("<think>4</think>5", "5"),
    ("<think>4", None),
    ("<think>4</think><think>5", None),
    ("4</think>5", "5"),
    ("<think>4</think>", None),
    (r"<think>\boxed{1}</think>\boxed{2}", "2"),
]


@pytest.mark.parametrize(("response", "answer"), TABLE)
def test_table(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


@given(st.text(), st.sampled_from(["4", r"\boxed{7}", "the answer is x", ""]))
def test_text_in_the_thinking_block_never_counts(thought: str, answer: str) -> None:
    thought = thought.replace("<", "")
    assert final_answer(f"<think>{thought}</think>{answer}") == final_answer(f"<think></think>{answer}")


@given(st.text(alphabet="\\boxed{}<answer/>#. \nthik"))
def test_any_text_is_survived_and_never_gives_a_blank_answer(text: str) -> None:
    assert final_answer(text) is None or final_answer(text).strip()  # type: ignore[union-attr]


@given(st.text(alphabet="ab{} ", max_size=30))
def test_boxed_agrees_with_a_slow_scan(inner: str) -> None:
    text = rf"\boxed{{{inner}}}"
    depth = 0
    for k, char in enumerate(text):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "}" and depth == 0:
            assert boxed(text) == [text[7:k]]
            return
    assert boxed(text) == []


MEGA = 10**6
HUGE = [
    "x" * MEGA,
    "\\boxed{" * (MEGA // 7),
    "\\boxed{" * (MEGA // 14) + "}" * (MEGA // 14),
    "\\boxed" + " " * MEGA,
    "{" * MEGA,
    "<answer>" * (MEGA // 8),
    "<answer></answer>" * (MEGA // 17),
    "the answer is " * (MEGA // 14),
    "the answer is 5." + "$" * MEGA,
    "the answer is 5. " * (MEGA // 17),
    "<answer>" + "<" * MEGA,
    "the answer is" + " " * MEGA,
    "<think>" * (MEGA // 7),
    "####\n" * (MEGA // 5),
    "\n" * MEGA,
    "$" * MEGA,
    "*" * MEGA,
    "." * MEGA,
    "\0" * MEGA,
]


@pytest.mark.parametrize("text", HUGE, ids=lambda text: repr(text[:14]))
def test_a_megabyte_costs_linear_time(text: str) -> None:
    start = time.process_time()
    final_answer(text)
    assert time.process_time() - start < 5.0  # a quadratic finder takes minutes


@pytest.mark.parametrize(
    ("prompt", "response", "answer"),
    [
        ("Add.<think>\n", "4", None),
        ("Add.<think>\n", "4</think>5", "5"),
        ("Add.<think>\n", "<think>4</think>5", "5"),
        ("Add.<think></think>", "5", "5"),
        ("What does <think> mean?", "5", "5"),
        ([{"role": "user", "content": "Add."}, {"role": "assistant", "content": "<think>"}], "4", None),
        ([{"role": "user", "content": "Add."}], "5", "5"),
        ([], "5", "5"),
    ],
)
def test_prompt_tail_and_response_are_read_together(prompt: Prompt, response: str, answer: str | None) -> None:
    assert final_answer(with_open_tag(response, prompt)) == answer


def test_a_hedge_keeps_its_answers_for_those_who_compare_lists() -> None:
    assert final_answers(r"It is \boxed{3}. Now \boxed{4} or \boxed{5}.") == ["4", "5"]


def test_after_thinking_keeps_a_response_without_tags() -> None:
    assert after_thinking("plain") == "plain"
