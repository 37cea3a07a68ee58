"""Codes that are the user's own: payloads compared with the entries of an allow-list, up to a boundary and never beyond it.

An entry with ``://`` is an address. A payload is allowed when scheme, host and port are the same and its path is the entry's or
lies below it; a path ends at ``/``, ``?``, ``#`` or the end. Any other entry is plain text. A payload is allowed when it is the
entry, or continues after one of the signs in :data:`DELIMITERS`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from index.errors import ConfigError

DELIMITERS = frozenset(":/?#;,|=& \t\r\n")
PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}
WHERE = "codes.allow"
BELOW = (
    "Name scheme and host, such as https://example.org: it allows what lies below it. Other text allows what goes on after it"
)


class Address(NamedTuple):
    """An address with its case and default port made equal. ``tail`` is the query and the fragment as they are written."""

    scheme: str
    host: str
    port: int
    path: str
    tail: str


class AllowList:
    """The payloads that the codes guard does not flag.

    Args:
        entries: addresses and plain texts; see the module.

    Raises:
        ConfigError: an entry is empty, is an address without a host or its beginning, or has a wildcard.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self.entries = tuple(entries)
        self._addresses: list[Address] = []
        self._texts: list[str] = []
        for entry in self.entries:
            if not entry.strip():
                what = f"the entry {entry!r} is empty and would allow every code"
                raise ConfigError(
                    what, where=WHERE, fix="Remove the entry, or name an address or the text that codes begin with"
                )
            if "*" in (entry.strip()[0], entry.strip()[-1]):
                raise ConfigError(f"{entry!r}: there are no wildcards", where=WHERE, fix=BELOW)
            if "://" in entry:
                self._addresses.append(_entry_address(entry))
            elif any(_goes_on(f"{scheme}://", entry.lower()) for scheme in PORTS):
                raise ConfigError(f"the entry {entry!r} would allow every address that begins so", where=WHERE, fix=BELOW)
            else:
                self._texts.append(entry)

    def __contains__(self, payload: object) -> bool:
        return isinstance(payload, str) and (self._address_allowed(payload) or any(_goes_on(payload, t) for t in self._texts))

    def _address_allowed(self, payload: str) -> bool:
        found = address(payload) if self._addresses else None
        return found is not None and any(_below(found, entry) for entry in self._addresses)


def address(payload: str) -> Address | None:
    """The address that a payload is, or None where readers of codes may not agree on which host it names.

    None: there is no scheme or host, there is a user name (``https://our.org@other.org``), a backslash, white space or a sign
    that is not shown, or the path climbs (``..``).
    """
    if "\\" in payload or any(unicodedata.category(sign)[0] in "CZ" for sign in payload):
        return None
    try:
        parts: SplitResult = urlsplit(payload)
        port = parts.port
    except ValueError:
        return None
    if not parts.scheme or not parts.hostname or "@" in parts.netloc:
        return None
    segments = re.split("/", re.sub("%2e", ".", parts.path, flags=re.IGNORECASE))
    if ".." in segments or "." in segments:
        return None
    tail = (f"?{parts.query}" if parts.query else "") + (f"#{parts.fragment}" if parts.fragment else "")
    scheme = parts.scheme.lower()
    return Address(scheme, _host(parts.hostname), PORTS.get(scheme, 0) if port is None else port, parts.path or "/", tail)


def _entry_address(entry: str) -> Address:
    found = address(entry)
    if found is None:
        what = f"{entry!r} is not an address that can be compared"
        raise ConfigError(what, where=WHERE, fix="Write scheme, host and path only, such as https://example.org/marks")
    if "*" in found.host:
        raise ConfigError(f"{entry!r}: a host has no wildcard", where=WHERE, fix="List every host that is allowed as an entry")
    return found


def _host(name: str) -> str:
    """A host in ASCII. A name that changes when it is converted and back is left as it is, so that it equals only itself."""
    name = name.lower()
    try:
        converted = name.encode("idna").decode("ascii")
        return converted if name.isascii() or converted.encode("ascii").decode("idna") == name else name
    except UnicodeError:
        return name


def _below(found: Address, entry: Address) -> bool:
    if found[:3] != entry[:3]:
        return False
    if entry.tail:
        rest = found.tail[len(entry.tail) :]
        return found.path == entry.path and found.tail.startswith(entry.tail) and rest[:1] in ("", "&", "#")
    if not found.path.startswith(entry.path):
        return False
    return entry.path.endswith("/") or found.path[len(entry.path) :][:1] in ("", "/")


def _goes_on(payload: str, entry: str) -> bool:
    if not payload.startswith(entry):
        return False
    rest = payload[len(entry) :]
    if rest and entry[-1] not in DELIMITERS and rest[0] not in DELIMITERS:
        return False
    return "@" not in re.split("[/?#]", rest, maxsplit=1)[0]  # our.org:1@other.org leads to other.org
