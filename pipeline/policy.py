"""The policy file: which pictures are released, and what happens with the others. It is separate because a person owns it."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from guards.allowed import AllowList
from index.errors import ConfigError
from index.second_look import AUTO, BUILT_IN, DESCRIPTOR, WORDS
from pipeline.fields import REQUIRED, choice, entry, flag, line, number, several, table, within
from pipeline.methods import LadderRung
from pipeline.rungs import MarkLadderRung
from pipeline.settings import contradiction, digest, settings

CONFIRM = 0.5  # score from which the second look agrees, where a policy sets only a threshold of its own
LONGEST_LADDER = 64
Steered = Literal["steer", "review", "reject", "observe"]
TRIGGERED = "score from which a finding is triggered"
ACTION = "what a triggered finding leads to"
REQUIRED_GUARD = "a required guard that cannot be opened stops the run; an optional one is recorded as skipped"


GRADED = ("copies", "marks", "text", "unsafe", "yolo")  # guards whose scores have degrees; a code is read or it is not
HARDLY_ANY, NEARLY_EVERY = 0.98, 0.05


def _one_or_many(value: Any) -> Any:
    return ([value] if value else []) if isinstance(value, str) else value


def _day(value: Any) -> Any:
    """A date of TOML as text; text stays what it is."""
    return value.isoformat() if type(value) is date else value


@settings
class AboutPolicy:
    """Who answers for the policy. Reports show it; it is no part of the policy's digest (:func:`policy_digest`)."""

    owner: str = line("", "role or person who owns the policy")
    approver: str = line("", "role or person who approved it; someone other than the owner")
    approved_on: Annotated[str, BeforeValidator(_day)] = line("", "day of the approval, as in 2026-11-30; empty: not approved")

    def __post_init__(self) -> None:
        if not self.approved_on:
            return
        try:
            whole = date.fromisoformat(self.approved_on).isoformat() == self.approved_on
        except ValueError:
            whole = False
        if not whole:
            raise contradiction("approved_on", f"{self.approved_on!r} is no day", "Write year, month and day: 2026-11-30")
        if not self.approver:
            raise contradiction("approved_on", "has no approver beside it", "Write who approved it: about.approver")


@settings
class CopiesPolicy:
    """Copies of protected works, and what is near enough to one."""

    threshold: float | None = number(
        None, 0, 1, "similarity from which a picture is too near; absent: the calibrated operating point of the index",
        above=True, absent="the calibrated operating point of the index",
    )  # fmt: skip
    confirm_threshold: float | None = number(
        None, 0, 1, f"score from which the second look agrees; only with `threshold`, and {CONFIRM} when absent",
        absent=f"the calibrated one (with a threshold of your own: {CONFIRM})",
    )  # fmt: skip
    k: int = number(3, 1, 100, "nearest references kept per attempt")
    hues: int = number(
        12, 1, 64,
        "into how many parts the circle of hues is cut to find copies in other colours, of references whose picture the index "
        "keeps; 1: they are not looked for",
    )  # fmt: skip
    second_look: str = line(
        AUTO,
        "the second look at a near picture: `alignment` (drawings), `keypoints` (photographs), `descriptor:FILE` (a network in "
        "TorchScript or ONNX), or `auto`: the one that the index was calibrated for. Any other than that is refused",
        least=1,
    )
    action: Literal["steer", "reject", "observe"] = choice("steer", ACTION)

    def __post_init__(self) -> None:
        look = self.second_look
        if look not in (AUTO, *BUILT_IN) and (not look.startswith(DESCRIPTOR) or not look.removeprefix(DESCRIPTOR).strip()):
            raise contradiction("second_look", f"there is no second look {look!r}", f"One of: {WORDS}")
        if self.confirm_threshold is not None and self.threshold is None:
            what = "has no effect without copies.threshold: the calibrated operating point has its own"
            raise contradiction("confirm_threshold", what, "Remove it, or set copies.threshold as well")


@settings
class GuardPolicy:
    """One other guard."""

    enabled: bool = flag(True, "false: the guard is not opened")
    required: bool = flag(True, REQUIRED_GUARD)
    threshold: float = number(0.5, 0, 1, TRIGGERED, above=True)
    action: Steered | None = choice("steer", ACTION)


@settings
class MarksPolicy(GuardPolicy):
    """Settings of a detector of marks, which is calibrated on the pictures of one family of models."""

    action: Steered | None = choice(
        None, f"{ACTION}; absent: `steer` on the family of models that the detector was calibrated on, `observe` on any other",
        absent="steer on the family of models that the detector was calibrated on, observe on any other",
    )  # fmt: skip


@settings
class YoloPolicy(MarksPolicy):
    """The second detector of marks. It is AGPL-3.0: only a policy that enables it gets it."""

    enabled: bool = flag(False, "false: the guard is not opened")


@settings
class UnsafePolicy(GuardPolicy):
    """Unsafe content; the guard is an optional extra."""

    required: bool = flag(False, REQUIRED_GUARD)
    threshold: float = number(0.8, 0, 1, TRIGGERED, above=True)
    action: Steered | None = choice("reject", ACTION)


@settings
class CodesPolicy(GuardPolicy):
    """Decodable codes."""

    allow: Annotated[tuple[Annotated[str, entry()], ...], BeforeValidator(_one_or_many)] = several(
        (), 1000, "our own codes: never flagged, so never erased; one text or several. See [Allowed codes](#allowed-codes)"
    )

    def __post_init__(self) -> None:
        try:
            AllowList(self.allow)
        except ConfigError as error:
            raise contradiction("allow", error.what, error.fix) from None


@settings
class TextPolicy(GuardPolicy):
    """Readable text."""

    least_signs: int = number(
        3, 1, 100,
        "signs that a word must have to count. A letter or digit is 1 sign, a Chinese, Japanese or Korean letter 1.5, a "
        "currency or per cent sign 2. See [Text](#text)",
    )  # fmt: skip
    sure: float = number(
        0.8, 0, 1,
        "confidence that a word with fewer letters than `least_signs` (a price, a number, two Chinese letters) must have to "
        "count",
    )  # fmt: skip


@settings
class OutsideGuard:
    """A guard of another package; it is used where the policy names it, and nowhere else."""

    name: str = line(REQUIRED, "name of a guard that an installed package brings (entry points `clearance.guards`)", least=1)
    enabled: bool = flag(True, "false: the guard is not opened")
    required: bool = flag(True, REQUIRED_GUARD)
    threshold: float | None = number(None, 0, 1, f"{TRIGGERED}; absent: the guard's own", above=True, absent="the guard's own")
    action: Steered | None = choice(None, f"{ACTION}; absent: the guard's own", absent="the guard's own")
    options: tuple[Annotated[str, entry()], ...] = several((), 100, "texts that only this guard understands")


@settings
class EarlyPolicy:
    """Early detection: probes look at samples in mid-flight and may only steer them. See :mod:`pipeline.respond.early`."""

    enabled: bool = flag(False, "look at samples in mid-flight; a probe may only steer. The shipped policy turns it on")
    signal: Literal["latent", "head", "decode"] = choice(
        "latent",
        "how probes compare x̂0 with the references: by latents, the head's embedding, or the decoded picture's",
    )
    probes: tuple[Annotated[float, within(0.001, 0.999)], ...] = several(
        (0.1, 0.2, 0.3), 32, "shares of the steps after which unsteered samples are probed", least=1
    )
    threshold: float | None = number(
        None, 0, 1, "similarity from which a sample is caught; absent: the calibrated ones, by noise level", above=True,
        absent="the calibrated ones, by noise level",
    )  # fmt: skip
    arm: bool = flag(True, "references that the prompt is near to catch a sample at a lower score")
    rollback: float = number(0.05, 0, 1, "share of the steps that a caught sample goes back before it is steered")


@settings
class Policy:
    """Which pictures are released, and what happens with the others; every row holds its digest.

    A finding of a guard with action ``steer`` climbs a ladder: ``mark_ladder`` for a mark, ``ladder`` for a copy. Where
    ``mark_ladder`` is empty, a mark is answered with new seeds, as often as ``ladder`` has rungs.
    """

    name: str = line("default", "recorded in every row", least=1)
    version: str = line("1", "recorded in every row", least=1)
    about: AboutPolicy = table(AboutPolicy)
    copies: CopiesPolicy = table(CopiesPolicy)
    marks: MarksPolicy = table(MarksPolicy)
    codes: CodesPolicy = table(CodesPolicy)
    text: TextPolicy = table(TextPolicy)
    unsafe: UnsafePolicy = table(UnsafePolicy)
    yolo: YoloPolicy = table(YoloPolicy)
    guards: tuple[OutsideGuard, ...] = several((), 32, "guards of other packages")
    early: EarlyPolicy = table(EarlyPolicy)
    ladder: tuple[LadderRung, ...] = several((), LONGEST_LADDER, "the answers to a copy, one rung for each next attempt")
    mark_ladder: tuple[MarkLadderRung, ...] = several(
        (), LONGEST_LADDER, "the answers to a mark, one rung for each next attempt"
    )
    when_exhausted: Literal["review", "rejected"] = choice(
        "review", "outcome of a doubtful request whose ladder is used up; a confirmed copy is rejected in any case"
    )
    max_evals: float | None = number(
        None, 0, 1_000_000,
        "denoiser evaluations that a request may spend; an attempt begins only if a full picture's steps fit into the rest; "
        "absent: as many as the ladders need",
        above=True, absent="as many as the ladders need",
    )  # fmt: skip

    def __post_init__(self) -> None:
        own = {field.name for field in dataclasses.fields(self)}
        names = [guard.name for guard in self.guards]
        for name in names:
            if name in own:
                raise contradiction("guards", f"{name!r} is a table of its own", f"Write its settings below [{name}]")
            if names.count(name) > 1:
                raise contradiction("guards", f"{name!r} stands there twice", "Keep one of them")


def policy_digest(policy: Policy) -> str:
    """Digest of a policy's rules: everything but ``about``.

    The same rules approved again, or by someone else, are the same rules: they draw the same pictures, and a run can be resumed
    under them. Who approved them is sealed in the run's statement, with the rest of the policy's text.
    """
    return digest({name: value for name, value in dataclasses.asdict(policy).items() if name != "about"})


def guard_tables(policy: Policy) -> dict[str, GuardPolicy | OutsideGuard]:
    """The policy's settings of each guard but copies, by name."""
    tables = {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}
    own = {name: table for name, table in tables.items() if isinstance(table, GuardPolicy)}
    return own | {guard.name: guard for guard in policy.guards}


def action_of(policy: Policy, guard: str) -> str:
    """What a triggered finding of a guard leads to; an action that the policy leaves open counts as ``steer``."""
    return policy.copies.action if guard == "copies" else guard_tables(policy)[guard].action or "steer"


def remarks(policy: Policy) -> list[str]:
    """Warnings about thresholds that are allowed but leave a guard with nearly nothing, or nearly everything, to find."""
    found = []
    for name in GRADED:
        guard = getattr(policy, name)
        threshold = guard.threshold if getattr(guard, "enabled", True) else None
        if threshold is not None and threshold > HARDLY_ANY:
            found.append(f"{name}.threshold = {threshold:g}: hardly any picture reaches it, so the guard finds next to nothing")
        elif threshold is not None and threshold < NEARLY_EVERY:
            found.append(f"{name}.threshold = {threshold:g}: nearly every picture reaches it")
    return found
