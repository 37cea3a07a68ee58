"""The policy file: which pictures are released, and what happens with the others. It is separate because a person owns it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from guards.asked import CATEGORIES, asked_for
from guards.registry import SEVERAL
from guards.vision_language import UNANSWERED
from index.second_look import AUTO, BUILT_IN, DESCRIPTOR, WORDS
from index.storage import place
from pipeline.fields import choice, flag, line, number, several, table, within
from pipeline.guard_settings import (
    ACTION,
    AskedPolicy,
    BlockedPolicy,
    ClassifierPolicy,
    CodesPolicy,
    FaithfulnessPolicy,
    GuardPolicy,
    MarksPolicy,
    OutsideGuard,
    PromptPolicy,
    Question,
    QuestionPolicy,
    TextPolicy,
    UnsafePolicy,
    VisionLanguagePolicy,
    YoloPolicy,
)
from pipeline.methods import LadderRung
from pipeline.rungs import MarkLadderRung
from pipeline.settings import contradiction, digest, settings

CONFIRM = 0.5  # score from which the second look agrees, where a policy sets only a threshold of its own
LONGEST_LADDER = 64
GRADED = ("copies", "marks", "text", "unsafe", "yolo")  # guards whose scores have degrees; a code is read or it is not
HARDLY_ANY, NEARLY_EVERY = 0.98, 0.05
LONG_WORD = 20  # signs; of what stands in pictures hardly any word has more
LISTED = 'blocked.words has {0!r}, which is one phrase with its signs; for several write a list: words = ["…", "…"]'
HUB = "hf-hub:"
ASKED = "asked"  # in rows, the action of a finding of a mark that the prompt asks for, and that the policy keeps
REWRITE = "rewrite"  # in rows, the action of a finding of words in the prompt that the policy replaced before it was drawn
GuardSettings = GuardPolicy | OutsideGuard | ClassifierPolicy | Question


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
    edits: tuple[Literal["turned", "negative", "inset"], ...] = several(
        (),
        3,
        "edits that are undone to find copies that hide behind them: `turned` (by a quarter, upside down), `negative`, `inset` "
        "(in a frame, on a page, in a scene); of references whose picture the index keeps",
    )
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
        if twice := next((edit for edit in self.edits if self.edits.count(edit) > 1), None):
            raise contradiction("edits", f"{twice!r} stands there twice", "Keep one of them")
        if self.confirm_threshold is not None and self.threshold is None:
            what = "has no effect without copies.threshold: the calibrated operating point has its own"
            raise contradiction("confirm_threshold", what, "Remove it, or set copies.threshold as well")


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
    steered: tuple[Annotated[float, within(0.001, 0.999)], ...] = several(
        (),
        32,
        "shares of the steps after which a steered sample's predicted picture is held against its references, by the second "
        "look; nothing is found where the index keeps no pictures",
    )
    rollback: float = number(0.05, 0, 1, "share of the steps that a caught sample goes back before it is steered")

    def __post_init__(self) -> None:
        if self.steered and not self.enabled:
            raise contradiction("steered", "has no effect without early detection", "Set early.enabled = true, or remove it")


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
    classifiers: tuple[ClassifierPolicy, ...] = several((), 32, "image classifiers that you bring, one entry for each finding")
    vision_language: VisionLanguagePolicy = table(VisionLanguagePolicy)
    questions: tuple[QuestionPolicy, ...] = several((), 32, "questions about every picture to a vision-language model")
    asked: AskedPolicy = table(AskedPolicy)
    prompt: PromptPolicy = table(PromptPolicy)
    blocked: tuple[BlockedPolicy, ...] = several((), 1000, "what prompts must not hold")
    faithfulness: FaithfulnessPolicy = table(FaithfulnessPolicy)
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
        "denoiser evaluations, in guided steps, after which a request begins no other attempt: one begins only if a full "
        "picture's steps fit into the rest. A reference that token merging carries takes a half more in each of its steps, "
        "which is counted once it is spent and may go beyond the number; absent: as many as the ladders need",
        above=True, absent="as many as the ladders need",
    )  # fmt: skip

    def __post_init__(self) -> None:
        own = {field.name for field in dataclasses.fields(self)}
        for guard in self.guards:
            if guard.name in own:
                raise contradiction(
                    "guards", f"{guard.name!r} is a table of its own", f"Write its settings below [{guard.name}]"
                )
            if (kind := guard.name.partition(":")[0]) in SEVERAL:
                raise contradiction(
                    "guards", f"{guard.name!r} is a guard that ships", f"Write its settings as an entry of [[{kind}s]]"
                )
            if ":" in guard.name:
                raise contradiction("guards", f"{guard.name!r} is no name of a guard", "Write the name without a colon")
        for key in ("guards", "classifiers", "questions"):
            names = [one.name for one in getattr(self, key)]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise contradiction(key, f"{twice!r} stands there twice", "Keep one of them, or give it another name")
        if self.asked.logo == "keep" and not self.marks.logos:
            raise contradiction("asked.logo", "has no effect: no guard looks for logos", "Set marks.logos = true, or remove it")
        if any(question.enabled for question in self.questions) and not (
            self.vision_language.address and self.vision_language.model
        ):
            fix = "Set vision_language.address and vision_language.model, or remove the questions"
            raise contradiction("questions", "there is no server that could answer them", fix)


_UNSAID = Policy()
NEWER = ("classifiers", "vision_language", "questions", "prompt", "blocked", "faithfulness", "asked")


def policy_digest(policy: Policy) -> str:
    """Digest of a policy's rules: everything but ``about``.

    The same rules approved again, or by someone else, are the same rules: they draw the same pictures, and a run can be resumed
    under them. Who approved them is sealed in the run's statement, with the rest of the policy's text. A policy that says
    nothing of a table or key that came later keeps the digest that it had before there was one.
    """
    rules = dataclasses.asdict(policy)
    if policy.copies.second_look == AUTO:
        del rules["copies"]["second_look"]
    if not policy.copies.edits:
        del rules["copies"]["edits"]
    if not policy.early.steered:
        del rules["early"]["steered"]
    if policy.asked.logo == "act":
        del rules["asked"]["logo"]
    if not policy.marks.logos:
        del rules["marks"]["logos"]
    for rung in rules["ladder"]:
        if rung.get("colours") == "copied":
            del rung["colours"]
    unsaid = {name for name in NEWER if getattr(policy, name) == getattr(_UNSAID, name)}
    return digest({name: value for name, value in rules.items() if name != "about" and name not in unsaid})


def guard_tables(policy: Policy, base: Path | None = None) -> dict[str, GuardSettings]:
    """The policy's settings of each guard that looks at pictures, but copies, by the guard's name.

    ``base``: the folder that the relative paths in them start from, where they are to be opened.
    """
    tables = {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}
    own: dict[str, GuardSettings] = {name: table for name, table in tables.items() if isinstance(table, GuardPolicy)}
    for one in policy.classifiers:
        local = base is not None and not one.model.startswith(HUB)
        own[f"classifier:{one.name}"] = dataclasses.replace(one, model=str(place(one.model, base))) if local else one
    own |= {f"question:{one.name}": Question.of(one, policy.vision_language) for one in policy.questions}
    return own | {guard.name: guard for guard in policy.guards}


def kept_if_asked(policy: Policy) -> frozenset[str]:
    """Categories of the marks that the policy keeps where the prompt asks for them."""
    return frozenset(c for kind, some in CATEGORIES.items() if getattr(policy.asked, kind) == "keep" for c in some)


def asked_sets(policy: Policy) -> list[tuple[str, ...]]:
    """Every set of categories, sorted, that :func:`asked_and_kept` may return but the empty one."""
    kinds = [some for kind, some in CATEGORIES.items() if getattr(policy.asked, kind) == "keep"]
    sets = (some for many in range(1, len(kinds) + 1) for some in combinations(kinds, many))
    return [tuple(sorted(category for one in some for category in one)) for some in sets]


def asked_and_kept(policy: Policy, prompt: str, negative_prompt: str = "") -> frozenset[str]:
    """Categories of the marks that a prompt asks for and the policy keeps; see :func:`guards.asked.asked_for`."""
    if not (kept := kept_if_asked(policy)):
        return kept
    return kept & {category for kind in asked_for(prompt, negative_prompt) for category in CATEGORIES[kind]}


def action_of(policy: Policy, guard: str, category: str = "", asked: Collection[str] = ()) -> str:
    """What a triggered finding of a guard leads to; an action that the policy leaves open counts as ``steer``.

    ``asked``: the categories of :func:`asked_and_kept`, whatever the guard; nothing follows from their findings.
    """
    if category in asked:
        return ASKED
    if guard == "copies":
        return policy.copies.action
    if guard == "faithfulness":
        return policy.faithfulness.action
    if guard == "prompt":
        return category.rpartition(".")[2]  # each rule has its own action: prompt.blocked.reject
    action = guard_tables(policy)[guard].action
    if category == UNANSWERED:
        return "observe" if action == "observe" else "review"
    return action or "steer"


def _hardly_ever(policy: Policy) -> list[tuple[str, float | None, str]]:
    """Bars besides the guards' thresholds: key, value (None: not in force), and what follows where it is next to 1."""
    early, prompt = policy.early, policy.prompt
    look = "the second look hardly ever agrees, so hardly any picture counts as a copy"
    return [
        ("copies.confirm_threshold", policy.copies.confirm_threshold, look),
        ("early.threshold", early.threshold if early.enabled else None, "hardly any sample reaches it in mid-flight"),
        ("prompt.near", prompt.near if prompt.enabled else None, "hardly any prompt is so near to a title"),
    ]


def remarks(policy: Policy) -> list[str]:
    """Warnings about thresholds that are allowed but leave a guard with nearly nothing, or nearly everything, to find."""
    found = []
    tables = guard_tables(policy)
    brought = [name for name, table in tables.items() if ":" in name or isinstance(table, OutsideGuard)]
    for name in (*GRADED, *brought):
        guard = tables[name] if name in brought else getattr(policy, name)
        threshold = guard.threshold if getattr(guard, "enabled", True) else None
        if threshold is not None and threshold > HARDLY_ANY:
            found.append(f"{name}.threshold = {threshold:g}: hardly any picture reaches it, so the guard finds next to nothing")
        elif threshold is not None and threshold < NEARLY_EVERY:
            found.append(f"{name}.threshold = {threshold:g}: nearly every picture reaches it")
    for key, value, end in _hardly_ever(policy):
        if value is not None and value > HARDLY_ANY:
            found.append(f"{key} = {value:g}: {end}")
    if policy.text.enabled and policy.text.least_signs > LONG_WORD:
        found.append(
            f"text.least_signs = {policy.text.least_signs}: hardly any word is so long, so the guard finds next to nothing"
        )
    if policy.prompt.enabled:
        found += [LISTED.format(word) for one in policy.blocked for word in one.words if re.search("[,;|]", word)]
    if policy.asked.watermark == "keep":
        found.append('asked.watermark = "keep": whoever writes prompts can have a watermark released by naming one')
    return found
