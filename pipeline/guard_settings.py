"""The policy's tables of guards: those that ship, and those that a user brings (classifiers, questions to a model)."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from guards.allowed import AllowList
from index.errors import ConfigError
from pipeline.fields import REQUIRED, choice, entry, flag, line, number, several
from pipeline.settings import contradiction, settings

Steered = Literal["steer", "review", "reject", "observe"]
TRIGGERED = "score from which a finding is triggered"
ACTION = "what a triggered finding leads to"
REQUIRED_GUARD = "a required guard that cannot be opened stops the run; an optional one is recorded as skipped"


def _one_or_many(value: Any) -> Any:
    return ([value] if value else []) if isinstance(value, str) else value


@settings
class GuardPolicy:
    """One other guard."""

    enabled: bool = flag(True, "false: the guard is not opened")
    required: bool = flag(True, REQUIRED_GUARD)
    threshold: float = number(0.5, 0, 1, TRIGGERED, above=True)
    action: Steered | None = choice("steer", ACTION)


@settings
class DetectorPolicy(GuardPolicy):
    """Settings of a detector of marks, which is calibrated on the pictures of one family of models."""

    action: Steered | None = choice(
        None, f"{ACTION}; absent: `steer` on the family of models that the detector was calibrated on, `observe` on any other",
        absent="steer on the family of models that the detector was calibrated on, observe on any other",
    )  # fmt: skip


@settings
class MarksPolicy(DetectorPolicy):
    """The detector of marks."""

    logos: bool = flag(
        False, "true: logos are looked for, too. Drawings have parts that look like logos: see the detector's card for how many"
    )


@settings
class YoloPolicy(DetectorPolicy):
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


ASKED = "what becomes of it where the prompt asks for it. act: as if the prompt did not; keep: recorded, and nothing follows"


@settings
class AskedPolicy:
    """Marks that the prompt asks for. See [Marks that the prompt asks for](#marks-that-the-prompt-asks-for)."""

    watermark: Literal["act", "keep"] = choice("act", f"a watermark: {ASKED}")
    qr: Literal["act", "keep"] = choice("act", f"a QR code or another matrix code: {ASKED}")
    text: Literal["act", "keep"] = choice("act", f"text: {ASKED}")
    logo: Literal["act", "keep"] = choice("act", f"a logo: {ASKED}")


@settings
class OutsideGuard:
    """A guard of another package; it is used where the policy names it, and nowhere else."""

    name: str = line(REQUIRED, "name of a guard that an installed package brings (entry points `clearance.guards`)", least=1)
    enabled: bool = flag(True, "false: the guard is not opened")
    required: bool = flag(True, REQUIRED_GUARD)
    threshold: float | None = number(None, 0, 1, f"{TRIGGERED}; absent: the guard's own", above=True, absent="the guard's own")
    action: Steered | None = choice(None, f"{ACTION}; absent: the guard's own", absent="the guard's own")
    options: tuple[Annotated[str, entry()], ...] = several((), 100, "texts that only this guard understands")


OWN_HEADS = ("copy", "mark", "text", "prompt", "caption", "answer")  # beginnings of the categories that have rules of their own
_NAME, _CATEGORY = re.compile(r"[a-z0-9][a-z0-9_-]*"), re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _checked_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        fix = "Use lower-case letters, digits, - and _: it becomes part of the guard's name in rows"
        raise contradiction("name", f"{name!r} is no name", fix)


def _checked_category(category: str) -> None:
    if category and not _CATEGORY.fullmatch(category):
        fix = "Write two or more words of lower-case letters, digits, - and _ with dots between them: content.violence"
        raise contradiction("category", f"{category!r} is no category", fix)
    head = category.partition(".")[0]
    if head in OWN_HEADS:
        what = f"categories that begin with {head!r} belong to guards that ship, and are answered in their way"
        raise contradiction("category", what, "Choose another beginning, such as content.")


@settings
class ClassifierPolicy:
    """A classifier that a user brings: which of its labels make one finding, and what follows. One entry is one guard."""

    name: str = line(REQUIRED, "name of the guard; rows hold `classifier:NAME`", least=1)
    enabled: bool = flag(True, "false: the guard is not opened")
    required: bool = flag(True, REQUIRED_GUARD)
    model: str = line(
        REQUIRED,
        "a folder that transformers' `AutoModelForImageClassification` opens (safetensors), an `.onnx` file with its "
        "`config.json` beside it, or `hf-hub:OWNER/NAME`; relative paths start from the run file",
        least=1,
    )  # fmt: skip
    revision: str = line("", "revision on the hub")
    allow_download: bool = flag(False, "fetch the model if it is not on this machine")
    labels: Annotated[tuple[Annotated[str, entry()], ...], BeforeValidator(_one_or_many)] = several(
        REQUIRED, 1000, "the model's labels that count, one text or several, as its `config.json` writes them", least=1
    )
    category: str = line("", "reason code in rows; empty: `classifier.NAME`")
    score: Literal["auto", "softmax", "sigmoid"] = choice(
        "auto",
        "how logits become scores. softmax: one label is right, and the labels' probabilities are added; sigmoid: each is "
        "right or not, and the highest counts; auto: as the model's `problem_type` or an ONNX file's last step says, sigmoid "
        "for one label, else softmax",
    )
    threshold: float = number(0.5, 0, 1, TRIGGERED, above=True)
    action: Steered = choice("review", ACTION)

    def __post_init__(self) -> None:
        _checked_name(self.name)
        _checked_category(self.category)
        twice = next((label for label in self.labels if self.labels.count(label) > 1), None)
        if twice is not None:
            raise contradiction("labels", f"{twice!r} stands there twice", "Keep one of them")


@settings
class VisionLanguagePolicy:
    """The server that answers `[[questions]]`, by OpenAI's chat completions. Pictures are sent to it; prompts never."""

    address: str = line("", "where it serves, as in http://127.0.0.1:8000/v1; needed as soon as there is a question")
    model: str = line("", "the model's name there; recorded in every row")
    key: str = line("", "name of the environment variable that holds the key; empty: no key is sent")
    answer: Literal["logprobs", "json"] = choice(
        "logprobs",
        "logprobs: one token, yes or no, and its probability is the score; json: an object with `answer` and `confidence`, for "
        "servers that give no probabilities",
    )
    side: int = number(768, 32, 4096, "longer side in pixels to which a larger picture is reduced before it is sent")
    seconds: float = number(30.0, 0.1, 600, "for one call, from the request to the answer's last byte")
    retries: int = number(2, 0, 10, "further calls after a time-out, a broken connection, 408, 429 or any 5xx")
    concurrency: int = number(4, 1, 64, "calls at one time")
    most_calls: int = number(0, 0, 1_000_000_000, "calls that a worker may make; 0: no limit")
    most_seconds: float = number(0.0, 0, 31_536_000, "seconds that a worker's calls may take in all; 0: no limit")
    most_tokens: int = number(
        0, 0, 1_000_000_000_000, "tokens that a worker's calls may use, as the server counts; 0: no limit"
    )
    when_unanswered: Literal["review", "error"] = choice(
        "review",
        "what becomes of a picture about which there is no answer (time-out, budget spent, an answer that cannot be read): a "
        "person looks at it, or its request ends as an error row. It never passes",
    )

    def __post_init__(self) -> None:
        if self.address:
            try:
                parts = urlsplit(self.address)
                usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            except ValueError:
                parts, usable = urlsplit(""), False
            if not usable or parts.query or parts.fragment:
                raise contradiction("address", "is no address of a server", "Write it as in http://127.0.0.1:8000/v1")
            if parts.username is not None or parts.password is not None:
                fix = "Put the key into an environment variable, and write the variable's name as vision_language.key"
                raise contradiction("address", "holds a user name or a password, and a policy is stored in every run", fix)
        if self.key and not _VARIABLE.fullmatch(self.key):
            fix = "Write the name of an environment variable, such as VISION_KEY; the key itself belongs into no file"
            raise contradiction("key", "is no name of an environment variable", fix)


@settings
class QuestionPolicy:
    """One question about every picture, answered by the model of `[vision_language]`. One entry is one guard."""

    name: str = line(REQUIRED, "name of the guard; rows hold `question:NAME`", least=1)
    enabled: bool = flag(True, "false: the guard is not opened")
    required: bool = flag(True, REQUIRED_GUARD)
    ask: str = line(REQUIRED, "the rule as a question that yes or no answers; its digest is in every row", least=8)
    finding: Literal["yes", "no"] = choice("yes", "the answer that is a finding")
    category: str = line("", "reason code in rows; empty: `question.NAME`")
    threshold: float = number(0.5, 0, 1, TRIGGERED, above=True)
    action: Steered = choice("review", ACTION)

    def __post_init__(self) -> None:
        _checked_name(self.name)
        _checked_category(self.category)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question with the server that answers it: the settings of one guard."""

    name: str
    enabled: bool
    required: bool
    ask: str
    finding: str
    category: str
    threshold: float
    action: Steered
    server: VisionLanguagePolicy

    @classmethod
    def of(cls, question: QuestionPolicy, server: VisionLanguagePolicy) -> Question:
        return cls(**{f.name: getattr(question, f.name) for f in dataclasses.fields(question)}, server=server)


Blocking = Literal["reject", "review", "rewrite", "observe"]


@settings
class BlockedPolicy:
    """What a prompt must not hold. Only with `prompt.enabled`."""

    words: Annotated[tuple[Annotated[str, entry()], ...], BeforeValidator(_one_or_many)] = several(
        (), 100_000,
        "words or phrases, one text or several; case, accents, look-alike letters and spaced letters make no difference",
    )  # fmt: skip
    pattern: str = line(
        "",
        "a regular expression instead, searched in the prompt as it is written, and in small letters without accents; .1 s for "
        "each at most",
    )  # fmt: skip
    action: Blocking = choice("reject", "what follows: `rewrite` draws the prompt with `instead` in place of what was found")
    instead: str = line("", "for `rewrite`: what stands in its place; empty: nothing")

    def __post_init__(self) -> None:
        from guards.prompt import Rule

        if bool(self.words) == bool(self.pattern):
            raise contradiction("words", "needs words or a pattern, and not both", 'Write words = ["…"], or pattern = "…"')
        if self.instead and self.action != "rewrite":
            what = f"has no effect with action = {self.action!r}"
            raise contradiction("instead", what, 'Remove it, or set action = "rewrite"')
        try:
            Rule.of(words=self.words, pattern=self.pattern, action=self.action, instead=self.instead, called="blocked")
        except ConfigError as error:
            raise contradiction("pattern" if self.pattern else "words", error.what, error.fix) from None


@settings
class PromptPolicy:
    """The guard of prompts, which acts before anything is drawn. See [Prompts](#prompts-before-they-are-drawn)."""

    enabled: bool = flag(False, "look at every prompt before it is drawn")
    titles: Literal["off", "reject", "review", "rewrite", "observe"] = choice(
        "review", "a prompt that names the title of a protected work of the index: what follows; off: titles are not looked for"
    )
    instead: str = line("", 'for `titles = "rewrite"`: what stands in the title\'s place; empty: nothing')
    near: float | None = number(
        None, 0, 1,
        "cosine from which a prompt is near to a title, both embedded by the text tower of the index's embedder; absent: not "
        "compared",
        above=True, absent="no comparison",
    )  # fmt: skip
    near_action: Literal["reject", "review", "observe"] = choice("review", "what follows when a prompt is near to a title")

    def __post_init__(self) -> None:
        if self.instead and self.titles != "rewrite":
            raise contradiction(
                "instead", f"has no effect with titles = {self.titles!r}", 'Set titles = "rewrite", or remove it'
            )


@settings
class FaithfulnessPolicy:
    """Whether a picture still shows what was asked. See [Faithfulness](#faithfulness)."""

    enabled: bool = flag(False, "compare pictures with their prompts, by the embedder of the index")
    of: Literal["steered", "all"] = choice(
        "steered", "which pictures are held against it: those that were steered or pushed by mates, or all"
    )
    threshold: float = number(
        0.5, 0, 1,
        "score from which the prompt counts as lost. 0: the picture is as near to it as is usual; 1: as near as any other is",
        above=True,
    )  # fmt: skip
    shown: float | None = number(
        None, -1, 1, "cosine of a prompt and a picture that shows it; absent: measured on the titles and works of the index",
        absent="measured on the titles and works of the index",
    )  # fmt: skip
    other: float | None = number(
        None, -1, 1, "cosine of a prompt and a picture of something else; absent: measured on the index",
        absent="measured on the titles and works of the index",
    )  # fmt: skip
    action: Steered = choice("review", f"{ACTION}; steer: a new seed, while the ladder has rungs left")

    def __post_init__(self) -> None:
        if (self.shown is None) != (self.other is None):
            key, absent = ("shown", "other") if self.other is None else ("other", "shown")
            raise contradiction(key, f"needs faithfulness.{absent} beside it", f"Set faithfulness.{absent}, or remove {key}")
        if self.shown is not None and self.other is not None and self.shown <= self.other:
            raise contradiction("shown", "is not above faithfulness.other", "Measure both: what shows its prompt is nearer")
