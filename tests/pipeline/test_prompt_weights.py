"""The syntax of weights in prompts."""

from __future__ import annotations

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


def test_many_brackets_are_read() -> None:
    assert weighted("(" * 200 + "cat" + ")" * 200).text == "cat"
