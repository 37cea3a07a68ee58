"""The Merkle tree of RFC 6962 over digests, in the order given: leaves and nodes are hashed apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def merkle_root(digests: Sequence[str]) -> str:
    """Root of the tree over hex digests, hex (RFC 6962, section 2.1)."""
    if not digests:
        return hashlib.sha256(b"").hexdigest()
    level = [hashlib.sha256(b"\0" + bytes.fromhex(digest)).digest() for digest in digests]
    return _subtree(level).hex()


def _subtree(level: list[bytes]) -> bytes:
    if len(level) == 1:
        return level[0]
    split = 1 << ((len(level) - 1).bit_length() - 1)  # the largest power of two below the length
    return hashlib.sha256(b"\1" + _subtree(level[:split]) + _subtree(level[split:])).digest()


def inclusion_path(digests: Sequence[str], index: int) -> list[str]:
    """The nodes beside the way from one leaf to the root, from the leaf up, hex (RFC 9162, section 2.1.3)."""
    level = [hashlib.sha256(b"\0" + bytes.fromhex(digest)).digest() for digest in digests]
    return [node.hex() for node in _path(level, index)]


def _path(level: list[bytes], index: int) -> list[bytes]:
    if len(level) == 1:
        return []
    split = 1 << ((len(level) - 1).bit_length() - 1)
    if index < split:
        return [*_path(level[:split], index), _subtree(level[split:])]
    return [*_path(level[split:], index - split), _subtree(level[:split])]
