"""A share of what was counted, with its interval: one formula and one way to write it, for all packages."""

from __future__ import annotations

from dataclasses import dataclass

Z95 = 1.959963984540054


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for ``hits`` of ``n`` (Wilson 1927; Newcombe 1998, method 3); (0, 1) when nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    p, z = hits / n, Z95
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # The interval touches 0 and 1 exactly at no hits and at nothing but hits; rounding must not change that.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def percent(value: float, digits: int | None = None) -> str:
    """A share for display: "7.6 %", from 10 to 90 % without the decimal; only 0 is "0 %", and only 1 is "100 %".

    Args:
        value: the share.
        digits: decimals instead of those.
    """
    if digits is None:
        digits = 0 if value in (0.0, 1.0) or 0.1 <= value <= 0.9 else 1
    text, least = f"{100 * value:.{digits}f}", 10.0**-digits
    if value > 0 and float(text) == 0:
        return f"<\u00a0{least:g}\u00a0%"
    if value < 1 and float(text) == 100:
        return f">\u00a0{100 - least:g}\u00a0%"
    return f"{text}\u00a0%"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share with its Wilson interval at 95 %: ``hits`` of ``n``."""

    value: float
    low: float
    high: float
    hits: int
    n: int

    @classmethod
    def of(cls, hits: int, n: int) -> Rate:
        """The share ``hits / n`` (0 of 0 is 0, with the interval 0 to 1)."""
        low, high = wilson(hits, n)
        return cls(value=hits / n if n else 0.0, low=low, high=high, hits=hits, n=n)

    @property
    def bounds(self) -> str:
        """The interval: "≤ 7.6 %" below a share of 0, "≥ 92.4 %" above one of 1, else "79.8 %–99.3 %"."""
        if not self.hits:
            return f"≤\u00a0{percent(self.high)}"
        if self.hits == self.n:
            return f"≥\u00a0{percent(self.low)}"
        return f"{percent(self.low)}–{percent(self.high)}"

    @property
    def text(self) -> str:
        """The share with its interval, or at 0 and 1 the interval alone: "95.8 %; 80 %–99.3 %", "≤ 7.6 %"."""
        return self.bounds if self.hits in (0, self.n) else f"{percent(self.value)}; {self.bounds}"

    def __str__(self) -> str:
        """ "0 of 47 (≤ 7.6 %, 95 %)", or "23 of 24 (95.8 %; 80 %–99.3 %, 95 %)": a bound stands beside every share."""
        return f"{self.hits} of {self.n} ({self.text}, 95\u00a0%)" if self.n else "nothing to count"
