"""What a policy may say about its guards."""

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
