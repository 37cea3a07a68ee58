"""Conditionings of prompts, each encoded once for as long as it is kept."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.model.conditioning import Conditioning

TOGETHER = 8  # prompts that share a call of the text encoders, which has so many rows in any case


class Contexts:
    """Prompt → conditioning. Prompts that are expected share the calls of the text encoders, whose rows are padded: the bytes
    are those of each prompt alone.

    Args:
        encode: prompts → conditionings, one by one.
        most: how many are kept, the latest.
        together: how many are encoded ahead at a time; all that are expected, where the encoders leave the device afterwards.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Iterable[Conditioning]], most: int, *, together: int = TOGETHER
    ) -> None:
        self._encode, self.most, self._together = encode, most, min(together, most)
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()
        self._expected: deque[str] = deque()

    def expect(self, prompts: Iterable[str]) -> None:
        """These will be asked for, in about this order."""
        self._expected.extend(prompts)

    def __call__(self, prompt: str) -> Conditioning:
        """The conditioning of a prompt."""
        if prompt not in self._kept:
            self._add([prompt, *self._next(prompt)])
        self._kept.move_to_end(prompt)
        return self._kept[prompt]

    def _next(self, prompt: str) -> list[str]:
        """Expected prompts that fill the call."""
        found: list[str] = []
        while self._expected and len(found) < self._together - 1:
            other = self._expected.popleft()
            if other != prompt and other not in self._kept and other not in found:
                found.append(other)
        return found

    def _add(self, prompts: list[str]) -> None:
        with suppress(Exception):  # one of the others may be at fault; its error comes when it is asked for
            return self._keep(prompts)
        self._keep(prompts[:1])

    def _keep(self, prompts: list[str]) -> None:
        for prompt, encoded in zip(reversed(prompts), reversed(list(self._encode(prompts))), strict=True):
            self._kept[prompt] = encoded
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
