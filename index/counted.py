"""A number with its noun, for messages: one form for all packages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """ "1 shard", "0 shards", "1,200 shards"; for nouns that take an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
