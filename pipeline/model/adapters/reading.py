"""How prompts are read beside their plain text: words of textual inversions, weights, and LoRAs on the text encoders.

All of it lasts for one call of the text encoders. A stand-in for each tokenizer gives a word of one's own ids that no
vocabulary has, and notes the weights; hooks on the encoders put the vectors in the place of those ids and scale the tokens.
Nothing is edited: outside, tokenizers, tables and weights are as they were, and a prompt without marks has the bytes that it
always had.

A weight w moves a token of the encoder's output from that of the empty prompt at the same place: z′ = e + w·(z − e), as
ComfyUI and compel do. (A1111 multiplies, and then divides by the change of the mean of all numbers. That mean is near zero for
SDXL, so the division breaks pictures.) Pooled embeddings have no tokens and stay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from index.errors import ConfigError
from pipeline.model.adapters.lora import Lora
from pipeline.model.adapters.lowrank import RowAdapter, adapted
from pipeline.model.adapters.prompt_weights import Weighted, weighted
from pipeline.model.adapters.textual_inversion import Embedding, clip_encoders, text_encoders

if TYPE_CHECKING:
    import torch

OWN = 1 << 24  # ids from here on are words of one's own: no vocabulary is as large
WEIGHABLE = ("CLIPText", "T5Encoder")  # text encoders whose tokens can be weighted

Worn = tuple[tuple[Lora, float], ...]  # LoRAs that act on one row, each with its strength


class Reading:
    """How the prompts of a run are read.

    Args:
        pipeline: the loaded diffusers pipeline.
        embeddings: textual inversions.
        weights: whether brackets in prompts are weights.

    Raises:
        ConfigError: weights are wanted, and the model has text encoders whose tokens cannot be weighted.
    """

    def __init__(self, pipeline: Any, embeddings: Sequence[Embedding] = (), *, weights: bool = False) -> None:
        self._pipeline, self.embeddings, self.weights = pipeline, tuple(embeddings), weights
        self._active = False
        if weights:
            others = [type(e).__name__ for e in text_encoders(pipeline).values() if not type(e).__name__.startswith(WEIGHABLE)]
            if others:
                what = f"prompts cannot be weighted for text encoders of class {others[0]}"
                fix = "Take the key out, and write what matters in words; weights work with CLIP and T5"
                raise ConfigError(what, where="generation.prompt_weighting", fix=fix)

    def marked(self, prompt: str) -> Weighted:
        """A prompt without its marks, and the weights that they had."""
        return weighted(prompt) if self.weights else Weighted(prompt)

    @contextmanager
    def reading(self, worn: Worn = ()) -> Iterator[None]:
        """Inside, the model's text encoders read prompts in this way. Inside another ``reading`` it changes nothing."""
        if self._active or not (self.embeddings or self.weights or worn):
            yield
            return
        self._active = True
        try:
            with ExitStack() as stack:
                for name, encoder in text_encoders(self._pipeline).items():
                    rows = [RowAdapter(lora.text[name], strength, None) for lora, strength in worn if name in lora.text]
                    stack.enter_context(adapted(encoder, rows))
                    if self.embeddings or self.weights:
                        stack.enter_context(self._standing_in(name, encoder))
                yield
        finally:
            self._active = False

    @contextmanager
    def _standing_in(self, name: str, encoder: Any) -> Iterator[None]:
        """A stand-in in the place of one encoder's tokenizer, and the hooks that act on what it notes."""
        of = name.replace("text_encoder", "tokenizer")
        tokenizer, own = getattr(self._pipeline, of), name in clip_encoders(self._pipeline)
        stand_in = StandIn(tokenizer, self, own=own)
        hooks = _Hooks(encoder, stand_in, [one.vectors[name] for one in self.embeddings] if own else [])
        vars(self._pipeline)[of] = stand_in  # not setattr, by which diffusers would note another class of tokenizer
        try:
            with hooks.attached():
                yield
        finally:
            vars(self._pipeline)[of] = tokenizer


class StandIn:
    """A tokenizer that knows words of one's own and weights; for everything else it is the one that it stands in for.

    Attributes:
        noted: ids (N, T) of the last call → weights float32 (N, T); None where all are 1.
        words: ids and weights of the text that was last asked for without its beginning and its end, each a list of T numbers:
            an eraser puts its tokens behind them. None where all weights are 1.
    """

    def __init__(self, tokenizer: Any, reading: Reading, *, own: bool) -> None:
        self._tokenizer, self._reading = tokenizer, reading
        self._patterns = [one.pattern for one in reading.embeddings] if own else []
        self.noted: tuple[torch.Tensor, torch.Tensor] | None = None
        self.words: tuple[list[int], list[float]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str | list[str], **how: Any) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        marked = [self._reading.marked(one) for one in texts]
        plain = [one.text for one in marked]
        found = self._tokenizer(plain[0] if isinstance(text, str) else plain, **how)
        words = [self._words(one) for one in plain]
        alone = isinstance(text, str) and how.get("add_special_tokens") is False
        if alone or how.get("padding") == "max_length":
            self.noted = self.words = None
        if not any(words) and not any(one.spans for one in marked):
            return found
        tensors = how.get("return_tensors") == "pt"
        rows = [self._row(one, found_in, how) for one, found_in in zip(marked, words, strict=True)]
        if alone:
            self.words = rows[0]
        longest = max(len(ids) for ids, _ in rows)
        pad = self._tokenizer.pad_token_id
        ids = [ids + [pad] * (longest - len(ids)) for ids, _ in rows]
        if not tensors:
            found["input_ids"] = ids[0] if isinstance(text, str) else ids
            return found
        import torch

        found["input_ids"] = torch.tensor(ids)
        if how.get("padding") == "max_length":  # the others are looked at for their length alone
            weights = torch.tensor([each + [1.0] * (longest - len(each)) for _, each in rows])
            self.noted = (found["input_ids"], weights)
        return found

    def weights_of(self, ids: torch.Tensor) -> torch.Tensor | None:
        """The weights (N, T) of ids (N, T) that the tokenizer made, as they are or with new tokens behind their text."""
        if self.noted is not None and self.noted[0].shape == ids.shape and bool((self.noted[0].to(ids.device) == ids).all()):
            return self.noted[1].to(ids.device)
        if self.words is None:
            return None
        found = ids.new_ones(ids.shape).float()
        for row, own in enumerate(ids[:, 1:].tolist()):  # the first one begins the text; what did not fit was cut off its end
            for at, (id_, given, weight) in enumerate(zip(own, *self.words, strict=False), 1):
                if id_ != given:
                    break
                found[row, at] = weight
        return found

    def batch_decode(self, ids: Any, **how: Any) -> Any:
        """Only for messages about what was cut off; words of one's own have no text there."""
        return self._tokenizer.batch_decode(ids.clamp(max=len(self._tokenizer) - 1), **how)

    def _words(self, text: str) -> list[tuple[int, int, int]]:
        """Where words of one's own stand: (first character, behind the last, which), the earlier and then the longer first."""
        places = [(m.start(), m.end(), which) for which, p in enumerate(self._patterns) for m in p.finditer(text)]
        kept: list[tuple[int, int, int]] = []
        for begin, end, which in sorted(places, key=lambda place: (place[0], -place[1])):
            if not kept or begin >= kept[-1][1]:
                kept.append((begin, end, which))
        return kept

    def _row(
        self, marked: Weighted, words: Sequence[tuple[int, int, int]], how: dict[str, Any]
    ) -> tuple[list[int], list[float]]:
        """Ids and weights of one prompt, as the tokenizer's own call with these arguments would give them."""
        special = how.get("add_special_tokens", True)
        ids: list[int] = []
        weights: list[float] = []
        at = 0
        for begin, end, which in (*words, (len(marked.text), len(marked.text), -1)):
            piece = self._tokenizer(marked.text[at:begin], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids += piece["input_ids"]
            weights += [_weight(marked, at + last - 1) for _, last in piece["offset_mapping"]]
            if which >= 0:
                count = self._reading.embeddings[which].length
                first = OWN + sum(one.length for one in self._reading.embeddings[:which])
                ids += range(first, first + count)
                weights += [_weight(marked, begin)] * count
            at = end
        begin_id = [self._tokenizer.bos_token_id] if special and self._begins else []
        end_id = [self._tokenizer.eos_token_id] if special else []
        longest = how.get("max_length") or self._tokenizer.model_max_length
        if how.get("truncation"):
            room = longest - len(begin_id) - len(end_id)
            ids, weights = ids[:room], weights[:room]
        ids, weights = begin_id + ids + end_id, [1.0] * len(begin_id) + weights + [1.0] * len(end_id)
        if how.get("padding") == "max_length":
            missing = longest - len(ids)
            ids, weights = ids + [self._tokenizer.pad_token_id] * missing, weights + [1.0] * missing
        return ids, weights

    @property
    def _begins(self) -> bool:
        """Whether the tokenizer puts a token before the text: CLIP's does, T5's does not."""
        begin = self._tokenizer.bos_token_id
        return begin is not None and self._tokenizer("")["input_ids"][0] == begin


def _weight(marked: Weighted, at: int) -> float:
    before = bisect_right(marked.spans, at, key=lambda span: span[0])
    _, end, weight = marked.spans[before - 1] if before else (0, 0, 1.0)
    return weight if at < end else 1.0


class _Hooks:
    """What acts on a text encoder: vectors of one's own behind its table, weights behind its output."""

    def __init__(self, encoder: Any, stand_in: StandIn, vectors: Sequence[torch.Tensor]) -> None:
        self._encoder, self._stand_in, self._vectors = encoder, stand_in, vectors
        self._own: list[torch.Tensor] = []  # ids of the call under way
        self._inside = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        hooks = [
            self._encoder.register_forward_pre_hook(self._before, with_kwargs=True),
            self._encoder.register_forward_hook(self._after, with_kwargs=True),
        ]
        if self._vectors:
            hooks.append(self._encoder.get_input_embeddings().register_forward_hook(self._looked_up))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, _: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Ids of one's own become an ordinary one, so that the end of the text is still found by its id."""
        ids = args[0] if args else named["input_ids"]
        self._own = [ids]
        ordinary = ids.where(ids < OWN, 0)
        return ((ordinary, *args[1:]), named) if args else (args, named | {"input_ids": ordinary})

    def _looked_up(self, _: Any, __: Any, found: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn import functional

        ids = self._own[0].to(found.device)
        if ids.shape != found.shape[:-1] or not bool((ids >= OWN).any()):
            return found
        table = torch.cat(list(self._vectors)).to(found.device, found.dtype)
        return torch.where((ids >= OWN)[..., None], functional.embedding((ids - OWN).clamp(min=0), table), found)

    def _after(self, encoder: Any, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> Any:
        """Scale the tokens of every state of the output; pooled embeddings stay."""
        ids = self._own[0]
        if self._inside or (weights := self._stand_in.weights_of(ids)) is None or bool((weights == 1).all()):
            return out
        self._inside = True
        try:
            empty = self._of_nothing(encoder, ids, args, named)
        finally:
            self._inside = False
        out["last_hidden_state"] = _scaled(out["last_hidden_state"], empty["last_hidden_state"], weights)
        if out.get("hidden_states") is not None:
            states = zip(out["hidden_states"], empty["hidden_states"], strict=True)
            out["hidden_states"] = tuple(_scaled(state, other, weights) for state, other in states)
        return out

    def _of_nothing(self, encoder: Any, ids: torch.Tensor, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The output for the empty prompt, in a call of the same shape."""
        stand_in = self._stand_in
        found = stand_in._tokenizer(
            [""] * len(ids), padding="max_length", max_length=ids.shape[1], truncation=True, return_tensors="pt"
        )
        nothing = found["input_ids"].to(ids.device)
        named = {name: value for name, value in named.items() if name != "input_ids"}
        if (mask := named.get("attention_mask")) is not None:
            named["attention_mask"] = found["attention_mask"].to(mask.device, mask.dtype)
        return encoder(nothing, *args[1:], **named) if args else encoder(input_ids=nothing, **named)


def _scaled(state: torch.Tensor, empty: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    import torch

    w = weights.to(state.dtype)[..., None]
    return torch.where(w == 1, state, empty + w * (state - empty))
