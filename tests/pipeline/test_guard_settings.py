"""Settings of guards in a policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.errors import ConfigError
from pipeline.policy import Policy
from pipeline.settings import read_toml


def read(tmp_path: Path, text: str) -> Policy:
    (tmp_path / "policy.toml").write_text(text, encoding="utf-8")
    return read_toml(Policy, tmp_path / "policy.toml")


@pytest.mark.parametrize(
    ("text", "allow"),
    [
        ("", ()),
        ('[codes]\nallow = ""', ()),
        ('[codes]\nallow = "CLR:"', ("CLR:",)),
        ('[codes]\nallow = ["CLR:", "https://example.org/marks"]', ("CLR:", "https://example.org/marks")),
    ],
)
def test_allowed_codes_are_one_text_or_several(tmp_path: Path, text: str, allow: tuple[str, ...]) -> None:
    assert read(tmp_path, text).codes.allow == allow


@pytest.mark.parametrize("allow", ['["CLR:", ""]', '"https://"', '"https://*.example.org"', "[1]"])
def test_entries_that_cannot_be_compared_are_refused_when_the_policy_is_read(tmp_path: Path, allow: str) -> None:
    with pytest.raises(ConfigError, match="allow"):
        read(tmp_path, f"[codes]\nallow = {allow}")


def test_the_rule_for_words_is_a_policy_key(tmp_path: Path) -> None:
    policy = read(tmp_path, "[text]\nleast_signs = 2\nsure = 0.95")
    assert (policy.text.least_signs, policy.text.sure) == (2, 0.95)
    assert (Policy().text.least_signs, Policy().text.sure) == (3, 0.8)


@pytest.mark.parametrize("key", ["least_signs = 0", "least_signs = 101", "sure = 1.5", "sure = 80.0"])
def test_a_rule_out_of_range_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=key.split()[0]):
        read(tmp_path, f"[text]\n{key}")
