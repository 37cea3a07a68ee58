"""The files of a tokenizer, looked at before it is loaded: its library names none of them when one is broken."""

from __future__ import annotations

from pathlib import Path

from index.errors import ModelError
from pipeline.model.folder.parts import RESTORE, read_json

WHOLE, TOKENS, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SMALL = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
BINARY = ("vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def check_tokenizer(folder: Path) -> None:
    """Look at every file of a tokenizer that is there.

    Args:
        folder: of the tokenizer, in a diffusers folder.

    Raises:
        ModelError: one is empty, cut short or of another form; ``where`` names it.
    """
    for name in SMALL:
        if (folder / name).exists():
            read_json(folder / name)
    for name in BINARY:
        if (folder / name).exists() and not _content(folder / name):
            raise ModelError("is empty", where=str(folder / name), fix=RESTORE)
    if (folder / WHOLE).exists():
        _check_whole(folder / WHOLE)
    tokens = _tokens(folder / TOKENS) if (folder / TOKENS).exists() else None
    if (folder / MERGES).exists():
        _check_merges(folder / MERGES, tokens)
    elif tokens is not None and not (folder / WHOLE).exists():
        raise ModelError(f"is missing; {TOKENS} beside it needs it", where=str(folder / MERGES), fix=RESTORE)


def _check_whole(path: Path) -> None:
    """tokenizer.json, as the library itself reads it."""
    from tokenizers import Tokenizer

    read_json(path)
    try:
        size = Tokenizer.from_file(str(path)).get_vocab_size()
    except Exception as error:  # the library raises nothing more particular
        raise ModelError(f"is no tokenizer ({error})", where=str(path), fix=RESTORE) from None
    if not size:
        raise ModelError("is a tokenizer without a token", where=str(path), fix=RESTORE)


def _tokens(path: Path) -> dict[str, int]:
    tokens = read_json(path)
    if not tokens:
        raise ModelError("holds no token", where=str(path), fix=RESTORE)
    odd = next((token for token, number in tokens.items() if type(number) is not int), None)
    if odd is not None:
        raise ModelError(f"gives token {odd[:40]!r} no whole number", where=str(path), fix=RESTORE)
    return tokens


def _check_merges(path: Path, tokens: dict[str, int] | None) -> None:
    """One pair of tokens a line. A file that is cut short may end in a pair whose joint token is not in the vocabulary."""
    try:
        lines = _content(path).decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"is not UTF-8 text (byte {error.start})", where=str(path), fix=RESTORE) from None
    pairs = [
        (number, line.split(" ")) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#version")
    ]
    if not pairs:
        raise ModelError("holds no pair of tokens", where=str(path), fix=RESTORE)
    odd = next((number for number, pair in pairs if len(pair) != 2 or not all(pair)), 0)
    last, pair = pairs[-1]
    if odd:
        what = f"line {odd} is no pair of tokens" + ("; it may be cut short" if odd == last else "")
        raise ModelError(what, where=str(path), fix=RESTORE)
    if tokens is not None and "".join(pair) not in tokens:
        what = f"its last line makes a token that {TOKENS} does not hold; it may be cut short"
        raise ModelError(what, where=str(path), fix=RESTORE)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=str(path), fix=RESTORE) from None
