"""The syntax of weights in prompts."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from index.errors import InputError
from pipeline.model.adapters.prompt_weights import weighted


@pytest.mark.parametrize(
    ("prompt", "text", "parts"),
    [
        ("a cat", "a cat", {}),
        ("a (red:1.3) cat", "a red cat", {"red": 1.3}),
        ("a (red) cat", "a red cat", {"red": 1.1}),
        ("a [red] cat", "a red cat", {"red": 1 / 1.1}),
        ("((red))", "red", {"red": 1.1 * 1.1}),
        ("(red (apple:2):0.5)", "red apple", {"red ": 0.5, "apple": 1.0}),
        (r"a cat \(drawing\)", "a cat (drawing)", {}),
        (r"(cat \(a\):1.5)", "cat (a)", {"cat (a)": 1.5}),
        ("smile :(", "smile :(", {}),
        ("(cat", "(cat", {}),
        ("cat)", "cat)", {}),
        ("(cat]", "(cat]", {}),
        ("(a:b)", "a:b", {"a:b": 1.1}),
        ("(none:0)", "none", {"none": 0.0}),
        ("(one:1)", "one", {}),
    ],
)
def test_text_and_weights(prompt: str, text: str, parts: dict[str, float]) -> None:
    found = weighted(prompt)
    assert found.text == text
    spans = {found.text[begin:end]: weight for begin, end, weight in found.spans}
    assert spans == pytest.approx({part: weight for part, weight in parts.items() if weight != 1})


@pytest.mark.parametrize("prompt", ["(cat:11)", "(cat:-1)"])
def test_a_weight_out_of_range_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="is not from 0 to 10"):
        weighted(prompt)


@pytest.mark.parametrize(
    ("prompt", "product"), [("((cat:10):10)", "100"), ("((cat:10))", "11"), ("(" * 25 + "cat" + ")" * 25, "10.83")]
)
def test_weights_that_multiply_out_of_range_are_refused(prompt: str, product: str) -> None:
    with pytest.raises(InputError, match=f"nested brackets multiply to {product}, which is not from 0 to 10"):
        weighted(prompt)


def test_the_product_is_what_counts_and_not_what_it_is_made_of() -> None:
    for prompt in ("((cat:0.5):10)", "(" * 26 + "(cat:0.5)" + ")" * 26, "([(cat:10)])", "[(cat:10)]"):
        assert weighted(prompt).text == "cat"
    with pytest.raises(InputError, match="the weight 11 is not"):
        weighted("((cat:11):0.1)")
    with pytest.raises(InputError) as caught:
        weighted(f"(cat:{'9' * 5000})")
    assert len(str(caught.value)) < 200


def test_brackets_nest_up_to_a_depth() -> None:
    assert weighted("([" * 25 + "cat" + "])" * 25).text == "cat"  # 50 deep
    assert weighted("(a)" * 1000).text == "a" * 1000
    assert weighted("(" * 1000 + "cat").text == "(" * 1000 + "cat"  # without their other halves they are text
    for prompt in ("[" * 51 + "cat" + "]" * 51, "(" * 5000 + "cat" + ")" * 5000):
        with pytest.raises(InputError, match="more than 50 deep"):
            weighted(prompt)


@pytest.mark.parametrize(
    "prompt",
    ["(" * 100_000 + "[" * 100_000, ")" * 200_000, "(" * 100_000 + "x]" * 100_000, "(a:" + "1" * 200_000 + "x)",
     "([" * 60_000 + "])" * 40 + ")" * 100_000],
)  # fmt: skip
def test_a_long_prompt_is_read_in_time_proportional_to_its_length(prompt: str) -> None:
    began = time.process_time()
    with suppress(InputError):
        weighted(prompt)
    assert time.process_time() - began < 5  # the square of the length takes minutes
