"""Many ids in little memory: eight bytes each, where a list of texts takes seventy."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Ids(Sequence[str]):
    """Reference ids (16 hexadecimal digits), in order.

    Args:
        ref_ids: the first ones.
    """

    def __init__(self, ref_ids: Iterable[str] = ()) -> None:
        self._numbers = array("Q", (int(ref_id, 16) for ref_id in ref_ids))

    @classmethod
    def of_numbers(cls, numbers: np.ndarray) -> Ids:
        """Of ids as numbers uint64 (N,)."""
        ids = cls()
        ids._numbers.frombytes(np.ascontiguousarray(numbers, np.uint64).tobytes())
        return ids

    def append(self, ref_id: str) -> None:
        """Put one more at the end."""
        self._numbers.append(int(ref_id, 16))

    def extend(self, other: Ids) -> None:
        """Put others at the end."""
        self._numbers.extend(other._numbers)

    def numbers(self) -> np.ndarray:
        """As numbers uint64 (N,)."""
        return np.frombuffer(self._numbers, np.uint64).copy() if self._numbers else np.zeros(0, np.uint64)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:016x}" for number in self._numbers)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [f"{number:016x}" for number in self._numbers[at]]
        return f"{self._numbers[at]:016x}"

    def __eq__(self, other: object) -> bool:
        return [*self] == other if isinstance(other, list) else isinstance(other, Ids) and self._numbers == other._numbers

    __hash__ = None  # type: ignore[assignment]  # it changes


def numbers_of(ref_ids: Sequence[str]) -> np.ndarray:
    """Ids, or longer digests, as the numbers uint64 (N,) of their first 16 digits; all at once."""
    return np.frombuffer(bytes.fromhex("".join(ref_id[:16] for ref_id in ref_ids)), ">u8").astype(np.uint64)
