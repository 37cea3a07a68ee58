"""The embedded world's tokenizer: CLIP's byte-pair scheme with a vocabulary of its own, shared by embedder and text encoder.

CLIP's own 49,408 tokens would be three quarters of such a small model's weights. This vocabulary holds the words of the icon
names and falls back to bytes, so it can encode every caption. The end token has the highest id, because open_clip's text tower
pools there. Merges are learned here: the trainer of the tokenizers library breaks ties by hash order and gives other files
every time (measured with 0.23.3).
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

CONTEXT = 32  # tokens, start and end included
VOCABULARY = 2400
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(folder: Path, names: list[str]) -> None:
    """Train on icon names and caption templates; write a ``CLIPTokenizer`` folder (vocab.json, merges.txt, …).

    The same names give the same bytes, whatever their order or repetition.

    Args:
        folder: created where missing; open it with ``CLIPTokenizer.from_pretrained(folder)``.
        names: icon names such as ``red-apple``; hyphens become spaces.
    """
    from tokenizers import pre_tokenizers

    from index.torchvision_ops import ensure

    ensure()
    from transformers import CLIPTokenizer

    from jobs.lab.world.catalogue import TEMPLATES

    scheme = CLIPTokenizer().backend_tokenizer  # CLIP's normaliser and splitter
    words: Counter[str] = Counter()
    for name in sorted(set(names)):
        for template in TEMPLATES:
            text = scheme.normalizer.normalize_str(template.format(name.replace("-", " ")))
            words.update(word for word, _ in scheme.pre_tokenizer.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(words, VOCABULARY - 2 * len(alphabet) - 2)
    tokens = alphabet + [byte + "</w>" for byte in alphabet] + ["".join(pair) for pair in merges] + [START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")


def learn_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016): join the most frequent neighbours, ``count`` times; ties by spelling."""
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words if word}
    merges: list[tuple[str, str]] = []
    pairs: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[str]] = {}

    def note(word: str, sign: int) -> None:
        symbols = spelled[word]
        for pair in pairwise(symbols):
            pairs[pair] += sign * words[word]
            places.setdefault(pair, set()).add(word)

    for word in spelled:
        note(word, 1)
    while len(merges) < count and pairs:
        best, frequency = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if frequency < 1:
            break
        merges.append(best)
        for word in places.pop(best):
            note(word, -1)
            symbols, joined, i = spelled[word], [], 0
            while i < len(symbols):
                if tuple(symbols[i : i + 2]) == best:
                    joined.append(symbols[i] + symbols[i + 1])
                    i += 2
                else:
                    joined.append(symbols[i])
                    i += 1
            spelled[word] = joined
            note(word, 1)
        del pairs[best]
    return merges
