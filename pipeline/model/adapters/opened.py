"""The LoRAs and textual inversions of a run, opened: merged into the model, or ready for the rows that name them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import AdapterConfig
from pipeline.model.adapters.file import AdapterFile, check_base, look_at_adapters
from pipeline.model.contexts import TOGETHER, Contexts
from pipeline.outcome import Adapter

if TYPE_CHECKING:
    from pipeline.model.adapters.lora import Lora
    from pipeline.model.adapters.lowrank import LowRank
    from pipeline.model.adapters.reading import Reading, Worn
    from pipeline.model.conditioning import Conditioning
    from pipeline.model.interface import DiffusionModel

KEPT_SETS = 8  # sets of adapters whose conditionings are kept, the latest


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """The LoRAs and textual inversions of a run.

    Attributes:
        files: all of them, in the run file's order.
        named: name → LoRA and strength, for the rows that name it.
        reading: how prompts are read; None: as the model does on its own.
    """

    files: tuple[AdapterFile, ...] = ()
    named: Mapping[str, tuple[Lora, float]] = field(default_factory=dict)
    reading: Reading | None = None

    def worn(self, text: str) -> Worn:
        """The LoRAs of a row, by what its column states.

        Raises:
            InputError: see :func:`pipeline.row_adapters.row_adapters`.
        """
        from pipeline.row_adapters import row_adapters

        return tuple(
            (self.named[one.name][0], self.named[one.name][1] if one.strength is None else one.strength)
            for one in row_adapters(text, self.named)
        )

    def plain(self, prompt: str) -> str:
        """A prompt as a reader without weights would write it."""
        return prompt if self.reading is None else self.reading.marked(prompt).text

    def quoted(self, text: str) -> str:
        """A text that is no prompt, such as a title, as a part of one: its brackets are no weights."""
        from pipeline.model.adapters.prompt_weights import quoted

        return quoted(text) if self.reading is not None and self.reading.weights else text

    def reads(self, worn: Worn = ()) -> AbstractContextManager[None]:
        """Inside, the model's text encoders read prompts as this run does, for a row with these LoRAs."""
        return nullcontext() if self.reading is None else self.reading.reading(worn)

    def truncated(self, model: DiffusionModel, prompt: str) -> bool:
        """Whether every text encoder drops the prompt's end; marks of weights are no part of it."""
        with self.reads():
            return model.truncated(prompt)

    @property
    def recorded(self) -> tuple[Adapter, ...]:
        """Those that act on every row."""
        return tuple(recorded(one) for one in self.files if one.config.rows == "all")

    @property
    def recorded_named(self) -> dict[str, Adapter]:
        """Those for the rows that name them."""
        return {one.name: recorded(one) for one in self.files if one.config.rows == "named"}


class Read:
    """Conditionings of a run's prompts, kept apart for every set of LoRAs that acts on text encoders.

    Args:
        model: loaded. adapters: of the run.
        kept: how many conditionings without such LoRAs are kept; of each set an eighth.
        together: how many are encoded ahead at a time.
    """

    def __init__(self, model: DiffusionModel, adapters: Adapters, kept: int, *, together: int = TOGETHER) -> None:
        self._model, self._adapters, self._kept, self._together = model, adapters, kept, together
        self._plain: dict[bool, Contexts] = {}
        self._sets: OrderedDict[tuple[Worn, bool], Contexts] = OrderedDict()

    def contexts(self, worn: Worn = (), *, negative: bool = False) -> Contexts:
        """Prompt, or negative prompt → conditioning, for a row with these LoRAs."""
        worn, negative = texts(worn), negative and self._model.negatives_differ
        if not worn:
            if negative not in self._plain:
                self._plain[negative] = self._made((), self._kept, negative)
            return self._plain[negative]
        found = self._sets.pop((worn, negative), None) or self._made(worn, max(8, self._kept // KEPT_SETS), negative)
        self._sets[worn, negative] = found
        if len(self._sets) > KEPT_SETS:
            self._sets.popitem(last=False)
        return found

    def _made(self, worn: Worn, kept: int, negative: bool) -> Contexts:
        how = {"negative": True} if negative else {}

        def encode(prompts: Sequence[str]) -> Conditioning:
            with self._adapters.reads(worn):
                return self._model.encode_prompts(prompts, **how)

        return Contexts(encode, kept, together=self._together)


def recorded(found: AdapterFile, strength: float | None = None) -> Adapter:
    """As audit rows name it."""
    tokens = (found.name,) if found.kind == "embedding" else ()
    weight = found.config.weight if strength is None else strength
    return Adapter(name=found.name, kind=found.kind, digest=found.digest, weight=weight, tokens=tokens, licence=found.licence)


def denoisers(worn: Worn) -> tuple[tuple[LowRank, float], ...]:
    """The low-rank weights of a row's LoRAs for the denoiser."""
    return tuple((lora.denoiser, strength) for lora, strength in worn if lora.denoiser is not None)


def texts(worn: Worn) -> Worn:
    """Those of a row's LoRAs that act on text encoders."""
    return tuple((lora, strength) for lora, strength in worn if lora.text)


def open_adapters(configured: Sequence[AdapterConfig], model: DiffusionModel, *, base: Path, weights: bool = False) -> Adapters:
    """Load the LoRAs and textual inversions of a run file; those for all rows are merged into the model's weights.

    Args:
        configured: the run file's entries; erasers among them are left to :func:`pipeline.respond.marks.open_erasers`.
        model: loaded. base: folder that relative paths start from.
        weights: whether brackets in prompts are weights.

    Raises:
        ModelError: a file is missing, of a kind that cannot be drawn with, or for another model.
        ConfigError: an entry contradicts its file, or prompts of this model cannot be weighted.
    """
    files = tuple(one for one in look_at_adapters(configured, base=base) if one.kind != "eraser")
    if not files and not weights:
        return Adapters()
    from pipeline.model.adapters.lora import fuse, load_lora
    from pipeline.model.adapters.reading import Reading
    from pipeline.model.adapters.textual_inversion import load_embedding

    parts: Any = model.parts
    loras: list[tuple[Lora, float]] = []
    for one in files:
        check_base(one, model.family, type(parts).__name__)
        if one.kind == "lora":
            loras.append((load_lora(one, parts, model.denoiser), one.config.weight))
    embeddings = [load_embedding(one, parts) for one in files if one.kind == "embedding"]
    merged = [(lora, strength) for lora, strength in loras if lora.file.config.rows == "all"]
    names = dict.fromkeys(name for lora, _ in merged for name in lora.text)
    fuse(merged, {"": model.network} | {name: getattr(parts, name) for name in names})
    named = {lora.file.name: (lora, strength) for lora, strength in loras if lora.file.config.rows == "named"}
    return Adapters(files=files, named=named, reading=Reading(parts, embeddings, weights=weights))
