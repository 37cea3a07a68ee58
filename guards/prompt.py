"""The guard of prompts: block lists, protected titles, and nearness to a title, before anything is drawn.

It looks at a text and not at pictures; and not at negative prompts, which no class of models is drawn towards, at any guidance
scale. Each rule has an action of its own, which ends its category: ``prompt.title.review``.
Findings name the rule or the title, never the prompt: they are part of the chain, and a prompt must stay erasable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from guards.base import Defaults, Finding, Probe, require_package
from guards.spelling import Hit, Phrases, as_written, readings, without
from index.errors import ClearanceError, ConfigError

if TYPE_CHECKING:
    from index.embed import Embedder

REVISION = "3"
SECONDS = 0.1  # for one pattern on one prompt
NEAR_TITLES = 4096  # titles that are embedded; more would take minutes when a run begins
TURNS = 5  # rewritings of one prompt: a word may come to light when another is taken out
EMPTIED = "prompt.emptied.reject"
INSTALL = "Install Clearance again: confusable-homoglyphs and regex belong to it"
DETAIL = 120


class PromptUnread(ClearanceError):
    """A pattern took too long on a prompt: whether the prompt may be drawn is not known."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a prompt must not hold, and what follows.

    Attributes:
        called: ``blocked`` or ``title``; the category's middle.
        action: reject, review, rewrite or observe.
        instead: what stands in its place where it is rewritten.
        phrases: words and phrases; empty for a pattern.
        pattern: a compiled regular expression; None for phrases.
        refs: title → id of the reference.
    """

    called: str
    action: str
    instead: str
    phrases: Phrases
    pattern: Any = None
    refs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, *, called: str, action: str, words: Sequence[str] = (), pattern: str = "", instead: str = "") -> Rule:
        """Make a rule from what a policy states.

        Raises:
            ConfigError: an entry holds no letter, a pattern is none, or it matches every prompt.
        """
        phrases = Phrases(words)
        if phrases.unusable:
            what = f"the entry {phrases.unusable[0]!r} holds no letter and no digit, so no prompt could hold it"
            raise ConfigError(what, where=called, fix="Remove it, or write a word; for signs use a pattern")
        compiled = None
        if pattern:
            import regex

            try:
                compiled = regex.compile(pattern, regex.IGNORECASE)
            except (regex.error, ValueError, OverflowError) as error:
                what = f"{pattern!r} is no regular expression ({error})"
                raise ConfigError(
                    what, where=called, fix="Write \\ before a sign that stands for itself, such as \\( or \\*"
                ) from None
            try:
                empty = compiled.search("", timeout=SECONDS) is not None
            except TimeoutError:
                empty = False
            if empty:
                what = f"{pattern!r} matches the empty text, and so every prompt"
                raise ConfigError(what, where=called, fix="Write + instead of *, or name what must be there")
        return cls(called=called, action=action, instead=instead, phrases=phrases, pattern=compiled)

    @property
    def category(self) -> str:
        return f"prompt.{self.called}.{self.action}"

    def hits(self, prompt: str) -> list[Hit]:
        """Where the prompt breaks the rule.

        Raises:
            PromptUnread: the pattern took longer than a tenth of a second.
        """
        if self.pattern is None:
            return self.phrases.hits(prompt)
        # As it is written too: in plain letters there is no é, and a Cyrillic word is half Latin.
        texts = {found.text: found for found in (as_written(prompt), *readings(prompt))}
        shown, hits = f"pattern {self.pattern.pattern}", dict[Hit, None]()
        try:
            for found in texts.values():
                spans = [match.span() for match in self.pattern.finditer(found.text, timeout=SECONDS)]
                hits |= dict.fromkeys(Hit(shown, found.at[start], found.at[end - 1] + 1) for start, end in spans if start < end)
        except TimeoutError:
            what = f"the pattern {self.pattern.pattern!r} took longer than {SECONDS:g} s on a prompt, which is not drawn"
            fix = "Write a simpler pattern: no repetition inside a repetition"
            raise PromptUnread(what, where="guard prompt", fix=fix) from None
        return list(hits)


class PromptLook(NamedTuple):
    """The guard's result for one prompt.

    Attributes:
        findings: one per category.
        drawn: the prompt to draw; the caller's where nothing is rewritten.
        rejected: reason code; empty: it may be drawn.
    """

    findings: tuple[Finding, ...]
    drawn: str
    rejected: str


class PromptGuard:
    """Looks at prompts before they are drawn. :meth:`open` makes it from a policy.

    Args:
        rules: what prompts must not hold.
        near: titles, their ids and embeddings; None: prompts are not compared with titles.
        version: of code, rules and titles.
    """

    name = "prompt"
    categories: tuple[str, ...] = ("prompt.blocked", "prompt.title", "prompt.near", EMPTIED)
    licence: str = "Apache-2.0"
    defaults = Defaults(action="review")

    def __init__(self, rules: Sequence[Rule], near: Near | None = None, *, version: str = REVISION) -> None:
        self.rules, self.near, self.version = tuple(rules), near, version
        own = dict.fromkeys([*(rule.category for rule in rules), *([near.category] if near is not None else []), EMPTIED])
        self.categories = tuple(own)

    @classmethod
    def probe(cls, settings: Any, blocked: Sequence[Any] = (), *, index_id: str = "") -> Probe:
        """The guard's version with a policy; ``settings`` without a ``near`` of its own: whether there could be one."""
        libraries = [
            require_package(module, name, guard=cls.name, install=INSTALL)
            for module, name in (("confusable_homoglyphs", "confusable-homoglyphs"), ("regex", "regex"))
        ]
        if not hasattr(settings, "near"):
            return Probe(version=f"{REVISION}+confusable-homoglyphs {libraries[0]}, regex {libraries[1]}")
        rules = [[*one.words, one.pattern, one.action, one.instead] for one in blocked]
        stated = [settings.titles, settings.instead, settings.near, settings.near_action]
        content = {
            name: hashlib.sha256(json.dumps(of).encode()).hexdigest() for name, of in (("rules", rules), ("titles", stated))
        }
        content |= {"libraries": " ".join(libraries)}
        if index_id and (settings.titles != "off" or settings.near is not None):
            content["index"] = index_id
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return Probe(version=f"{REVISION}+{digest[:8]}", weights=content)

    @classmethod
    def open(
        cls, settings: Any, blocked: Sequence[Any] = (), *, titles: Iterable[tuple[str, str]] = (),
        embedder: Embedder | None = None, index_id: str = "",
    ) -> PromptGuard:  # fmt: skip
        """Make the guard of a policy.

        Args:
            settings, blocked: :class:`pipeline.guard_settings.PromptPolicy` and its ``[[blocked]]``.
            titles: (id, title) of the protected works. embedder: of the index. index_id: which index.

        Raises:
            ConfigError: the policy compares with titles, and there is no index, or it has too many.
        """
        wanted = settings.titles != "off" or settings.near is not None
        found = list(titles) if wanted else []
        rules = [
            Rule.of(called="blocked", action=one.action, words=one.words, pattern=one.pattern, instead=one.instead)
            for one in blocked
        ]
        if settings.titles != "off" and found:
            refs = {title: ref_id for ref_id, title in reversed(found)}
            titled = Rule(
                called="title", action=settings.titles, instead=settings.instead, phrases=Phrases(refs), refs=refs
            )  # fmt: skip
            rules.append(titled)
        near = None
        if settings.near is not None:
            if embedder is None:
                what = "there is no index, whose embedder would compare prompts with titles"
                raise ConfigError(what, where="policy: prompt.near", fix="Name an index in the run file, or remove prompt.near")
            if len(found) > NEAR_TITLES:
                what = f"the index has {len(found):,} titles, and at most {NEAR_TITLES:,} are compared"
                raise ConfigError(what, where="policy: prompt.near", fix="Remove prompt.near; prompt.titles has no such limit")
            near = Near(found, embedder, threshold=settings.near, action=settings.near_action)
        version = cls.probe(settings, blocked, index_id=index_id).version
        return cls(rules, near, version=version)

    def check(self, prompt: str) -> PromptLook:
        """Look at a prompt; where a rule rewrites it, at what comes of that too.

        Raises:
            PromptUnread: a pattern took too long.
            ModelError: the embedder has no vector for it.
        """
        worst: dict[str, Finding] = {}
        drawn = prompt
        for _ in range(TURNS):
            rewritten = drawn
            for finding, rule, hits in self._findings(drawn):
                if finding.category not in worst or finding.score > worst[finding.category].score:
                    worst[finding.category] = finding
                if rule is not None and hits and rule.action == "rewrite":
                    rewritten = without(rewritten, rule.hits(rewritten), rule.instead)
            if rewritten == drawn:
                break
            drawn = rewritten
        emptied = drawn != prompt and not any(letter.isalnum() for letter in drawn)
        endless = any(rule.action == "rewrite" and rule.hits(drawn) for rule in self.rules)
        detail = "nothing is left of the prompt" if emptied else "it cannot be rewritten" if endless else ""
        worst[EMPTIED] = self._finding(EMPTIED, float(bool(detail)), 0.5, detail=detail)
        findings = tuple(worst[category] for category in self.categories if category in worst)
        rejected = [finding.category for finding in findings if finding.triggered and finding.category.endswith(".reject")]
        return PromptLook(findings, drawn, rejected[0] if rejected else "")

    def _findings(self, prompt: str) -> Iterator[tuple[Finding, Rule | None, list[Hit]]]:
        for rule in self.rules:
            hits = rule.hits(prompt)
            found = hits[0].phrase if hits else ""
            ref_id = rule.refs.get(found, "")
            yield self._finding(rule.category, float(bool(hits)), 0.5, detail=found, ref_id=ref_id), rule, hits
        if self.near is not None:
            score, ref_id, title = self.near.nearest(prompt)
            yield self._finding(self.near.category, score, self.near.threshold, detail=title, ref_id=ref_id), None, []

    def _finding(self, category: str, score: float, threshold: float, *, detail: str = "", ref_id: str = "") -> Finding:
        return Finding(
            guard=self.name, version=self.version, category=category, score=score, threshold=threshold, detail=detail[:DETAIL],
            ref_id=ref_id,
        )  # fmt: skip


class Near:
    """The titles of protected works in the space of the embedder's text tower.

    Args:
        titles: (id, title) of each.
        embedder: of the index.
        threshold: cosine from which a prompt is near. action: what follows.
    """

    def __init__(self, titles: Sequence[tuple[str, str]], embedder: Embedder, *, threshold: float, action: str) -> None:
        self.threshold, self.category = float(threshold), f"prompt.near.{action}"
        self._embedder = embedder
        self._titles = [(ref_id, title) for ref_id, title in titles if title.strip()]
        self._vectors = embedder.texts([title for _, title in self._titles]) if self._titles else np.empty((0, 1), np.float32)

    def nearest(self, prompt: str) -> tuple[float, str, str]:
        """Cosine to the nearest title, its id, and the title; -1 where there is none."""
        if not self._titles:
            return -1.0, "", ""
        cosines = (self._vectors.astype(np.float64) * self._embedder.texts([prompt])[0].astype(np.float64)).sum(1)
        best = int(cosines.argmax())
        return float(cosines[best]), *self._titles[best]
