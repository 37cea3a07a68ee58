"""The allow-list of codes stops at a boundary: a look-alike of what is allowed is not allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.allowed import AllowList
from index.errors import ConfigError


@pytest.mark.parametrize(
    "payload",
    [
        "https://example.org",
        "https://example.org/",
        "https://example.org/a/b?c=d#e",
        "https://example.org?id=7",
        "https://example.org#top",
        "HTTPS://EXAMPLE.ORG/A",  # a code's alphanumeric mode has no small letters
        "https://example.org:443/a",
    ],
)
def test_what_lies_on_the_host_is_allowed(payload: str) -> None:
    assert payload in AllowList(["https://example.org"])


@pytest.mark.parametrize(
    "payload",
    [
        "https://example.org.evil.com",
        "https://example.org.evil.com/https://example.org",
        "https://example.orgx",
        "https://example.org-login.com",
        "https://example.org@evil.com",
        "https://example.org:443@evil.com/",
        "https://user@example.org",
        "https://example.org\\@evil.com",
        "https://example.org\\.evil.com",
        "https://example.org%2eevil.com",
        "https://example.org:8443/",
        "https://sub.example.org",
        "http://example.org",
        "https:example.org",
        "https:///example.org",
        "https://еxample.org",  # a Cyrillic letter
        "https://ｅxample.org",  # a wide letter
        "https://example.org\u200b.evil.com",
        "https://example.org\n.evil.com",
        " https://example.org",
        "https://[::1",
        "",
    ],
)
def test_look_alikes_of_the_host_are_not(payload: str) -> None:
    assert payload not in AllowList(["https://example.org"])


@pytest.mark.parametrize(
    ("payload", "allowed"),
    [
        ("https://example.org/marks", True),
        ("https://example.org/marks/7", True),
        ("https://example.org/marks?id=7", True),
        ("https://example.org/marks#7", True),
        ("https://example.org/marksmen", False),
        ("https://example.org/marks.evil", False),
        ("https://example.org/marks/../other", False),
        ("https://example.org/marks/%2E%2e/other", False),
        ("https://example.org/marks%2Fother", False),
        ("https://example.org/Marks", False),  # hosts know no case, paths do
        ("https://example.org/", False),
    ],
)
def test_a_path_ends_at_a_boundary(payload: str, allowed: bool) -> None:
    assert (payload in AllowList(["https://example.org/marks"])) is allowed


@pytest.mark.parametrize(
    ("payload", "allowed"),
    [
        ("https://example.org/v?id=7", True),
        ("https://example.org/v?id=7&x=1", True),
        ("https://example.org/v?id=77", False),
        ("https://example.org/v/w?id=7", False),
        ("https://example.org/v", False),
    ],
)
def test_a_query_in_the_entry_is_compared_as_well(payload: str, allowed: bool) -> None:
    assert (payload in AllowList(["https://example.org/v?id=7"])) is allowed


def test_names_in_other_scripts_are_compared_as_browsers_send_them() -> None:
    assert "https://xn--bcher-kva.example/7" in AllowList(["https://bücher.example"])
    assert "https://bücher.example" in AllowList(["https://xn--bcher-kva.example"])
    # Browsers lead the first to another host than the second, although one old rule makes them one.
    assert "https://straße.example" not in AllowList(["https://strasse.example"])


@pytest.mark.parametrize(
    ("entry", "payload", "allowed"),
    [
        ("CLR:", "CLR:42", True),
        ("CLR", "CLR", True),
        ("CLR", "CLR:42", True),
        ("CLR", "CLR 42", True),
        ("CLR", "CLR42", False),
        ("CLR", "CLRX", False),
        ("CLR", "xCLR", False),
        ("CLR", "clr", False),
        ("example.org", "example.org/a", True),
        ("example.org", "example.org.evil.com", False),
        ("example.org", "example.org@evil.com", False),
        ("example.org", "example.org:1@evil.com", False),
        ("mailto:us@example.org", "mailto:us@example.org?subject=x", True),
        ("mailto:us@example.org", "mailto:us@example.org.evil.com", False),
    ],
)
def test_plain_text_goes_on_only_after_a_delimiter(entry: str, payload: str, allowed: bool) -> None:
    assert (payload in AllowList([entry])) is allowed


def test_several_entries_each_count_alone() -> None:
    both = AllowList(["CLR:", "https://example.org/marks"])
    assert "CLR:1" in both
    assert "https://example.org/marks/1" in both
    assert "https://example.org/CLR:1" not in both


def test_an_empty_list_allows_nothing() -> None:
    assert "CLR:1" not in AllowList()


@pytest.mark.parametrize("entry", ["", " ", "https://", "https://*.example.org", "https://us@example.org", "https://a b.org"])
def test_entries_that_allow_too_much_are_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"codes\.allow"):
        AllowList([entry])


@pytest.mark.parametrize(
    "entry", ["https", "https:", "https:/", "HTTPS", "http", "ftp:", "wss", "*", "CLR*", "*.example.org", " * "]
)
def test_the_beginning_of_an_address_and_wildcards_are_refused_with_advice(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"Name scheme and host, such as https://example\.org"):
        AllowList([entry])


@pytest.mark.parametrize("entry", ["WIFI", "WIFI:", "mailto:us@example.org", "www", "httpx", "h", "A*B"])
def test_other_text_is_allowed_to_begin_codes(entry: str) -> None:
    assert f"{entry}:1" in AllowList([entry])


@given(st.text(alphabet="abc.-@:/?#\\%2e\u200b\u0430 ", min_size=1, max_size=12))
def test_no_ending_of_the_host_moves_it_elsewhere(ending: str) -> None:
    from urllib.parse import urlsplit

    payload = f"https://example.org{ending}"
    if payload in AllowList(["https://example.org"]):
        assert urlsplit(payload).hostname == "example.org"
        assert "@" not in urlsplit(payload).netloc
