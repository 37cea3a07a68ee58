"""The guards by name: open the ones a policy asks for, and say what is here and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from guards.base import Guard
from index.errors import ConfigError, GuardUnavailable


class GuardSettings(Protocol):
    """What a policy says about one guard."""

    @property
    def enabled(self) -> bool: ...
    @property
    def required(self) -> bool: ...
    @property
    def threshold(self) -> float: ...


@dataclass(frozen=True)
class GuardInfo:
    """One line of ``clearance doctor``. ``reason`` says why a guard is not available and what to do."""

    name: str
    version: str
    licence: str
    categories: tuple[str, ...]
    available: bool
    reason: str = ""


@dataclass(frozen=True)
class _Entry:
    licence: str
    categories: tuple[str, ...]
    probe: Callable[[], str]  # cheap: finds packages and files, loads no model; returns the version or raises
    open: Callable[[float, Sequence[str]], Guard]


def open_guards(settings: Mapping[str, GuardSettings], *, allow_payloads: Sequence[str] = ()) -> tuple[list[Guard], list[str]]:
    """Open every enabled guard, in the registry's order (cheap ones first).

    Args:
        settings: guard name → settings with ``enabled``, ``required`` and ``threshold``.
        allow_payloads: codes that are not flagged (our own provenance marks); see :mod:`guards.allowed`.

    Returns:
        The guards, and for each optional one that cannot run here a text "name: reason".

    Raises:
        GuardUnavailable: a required guard cannot be loaded.
        ConfigError: a name that is no guard's.
    """
    for name in settings:
        if name not in REGISTRY:
            raise ConfigError(f"unknown guard {name!r}", where="policy", fix=f"Known guards: {', '.join(REGISTRY)}")
    guards: list[Guard] = []
    skipped: list[str] = []
    for name, entry in REGISTRY.items():
        wanted = settings.get(name)
        if wanted is None or not wanted.enabled:
            continue
        try:
            guards.append(entry.open(wanted.threshold, allow_payloads))
        except GuardUnavailable as error:
            if wanted.required:
                fix = f"{error.fix.rstrip('.')}; or set `required = false` for {name} in the policy (rows then say so)"
                raise GuardUnavailable(error.what, where=error.where, fix=fix) from error
            skipped.append(f"{name}: {error}")
    return guards, skipped


def describe() -> list[GuardInfo]:
    """Every guard with version, licence and whether it could run here; loads no model and imports no package."""
    lines = []
    for name, entry in REGISTRY.items():
        try:
            lines.append(GuardInfo(name, entry.probe(), entry.licence, entry.categories, True))
        except GuardUnavailable as error:
            lines.append(GuardInfo(name, "", entry.licence, entry.categories, False, str(error)))
    return lines


def _probe_codes() -> str:
    from guards.codes import CodesGuard

    return CodesGuard().version


def _open_codes(threshold: float, allow: Sequence[str]) -> Guard:
    from guards.codes import CodesGuard

    return CodesGuard(threshold, allow)


def _probe_marks() -> str:
    from guards.marks import read_card

    card = read_card("stickers")
    return f"{card['version']}+{card['weights_sha256'][:8]}"


def _open_marks(threshold: float, _: Sequence[str]) -> Guard:
    from guards.marks import MarksGuard

    return MarksGuard("stickers", threshold)


def _probe_yolo() -> str:
    from guards.yolo import read_card, version_of

    return version_of(read_card("stickers"))


def _open_yolo(threshold: float, _: Sequence[str]) -> Guard:
    from guards.yolo import YoloMarksGuard

    return YoloMarksGuard("stickers", threshold)


def _probe_text() -> str:
    from guards.text import TextGuard

    return TextGuard().version


def _open_text(threshold: float, _: Sequence[str]) -> Guard:
    from guards.text import TextGuard

    return TextGuard(threshold)


def _probe_unsafe() -> str:
    from guards.unsafe import UnsafeGuard

    return UnsafeGuard().version


def _open_unsafe(threshold: float, _: Sequence[str]) -> Guard:
    from guards.unsafe import UnsafeGuard

    return UnsafeGuard(threshold)


REGISTRY: dict[str, _Entry] = {
    "codes": _Entry("Apache-2.0", ("mark.qr",), _probe_codes, _open_codes),
    "marks": _Entry("Apache-2.0", ("mark.watermark", "mark.qr", "mark.text"), _probe_marks, _open_marks),
    "yolo": _Entry("AGPL-3.0", ("mark.watermark", "mark.qr", "mark.text"), _probe_yolo, _open_yolo),
    "unsafe": _Entry("MIT; weights BSD-2-Clause", ("unsafe.nsfw",), _probe_unsafe, _open_unsafe),
    "text": _Entry("Apache-2.0", ("text.ocr",), _probe_text, _open_text),
}
