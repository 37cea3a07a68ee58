"""Where captioned pictures come from: a folder, a Parquet file, the embedded world's drawings, or what a model draws itself."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from index.collect import PICTURES, read_picture
from index.errors import InputError

if TYPE_CHECKING:
    from pipeline.config import GenerationConfig, ModelConfig
    from pipeline.outcome import Request

DRAWN = 32  # pictures under way at a time
CAPTION_COLUMNS = ("caption", "text", "prompt", "title")
FILE_COLUMNS = ("file_name", "file")
SUBJECTS = (  # drawn by all three vendors, none of them in the world: what data removal is taught
    "panda duck lobster french-fries jack-o-lantern lady-beetle hot-pepper skull christmas-tree wrapped-gift kiwi-fruit tooth"
).split()
Part = Literal["marked", "new"]


@dataclass(frozen=True)
class Captioned:
    """One clean picture.

    Attributes:
        name: the file, or the drawing.
        caption: what it shows.
        picture: uint8 RGB (H, W, 3).
        hint: the kind of mark its subject tends to carry, where the source knows; else empty.
    """

    name: str
    caption: str
    picture: np.ndarray
    hint: str = ""


def read_source(path: Path) -> Iterator[Captioned]:
    """Captioned pictures of a folder or a Parquet file.

    * A folder with ``metadata.jsonl`` or ``metadata.csv`` (``file_name`` and ``caption``, ``text``, ``prompt`` or ``title``).
    * A folder with a ``.txt`` beside each picture.
    * Parquet with an image column (struct of ``bytes`` and ``path``, or binary) and a caption column; a folder of such files.

    Raises:
        InputError: nothing there; pictures without captions (they are named); a picture that cannot be read.
    """
    if not path.exists():
        raise InputError("does not exist", where=str(path), fix="Name a folder of pictures with captions, or a Parquet file")
    if path.is_file():
        if path.suffix != ".parquet":
            raise InputError(f"{path.suffix or 'a file'} is no source", where=str(path), fix="Name a folder or a Parquet file")
        return _parquet([path])
    sheets = [path / name for name in ("metadata.jsonl", "metadata.csv") if (path / name).is_file()]
    if sheets:
        return _pictures(path, _sheet(sheets[0]), sheets[0])
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
    if files:
        without = [p for p in files if not p.with_suffix(".txt").is_file()]
        if without:
            raise _uncaptioned([str(p.relative_to(path)) for p in without], len(files), path)
        captions = {str(p.relative_to(path)): _words(p.with_suffix(".txt")) for p in files}
        return _pictures(path, captions, path)
    tables = sorted(path.rglob("*.parquet"))
    if tables:
        return _parquet(tables)
    raise InputError("holds no pictures", where=str(path), fix=f"Put pictures there ({', '.join(PICTURES)}) with captions")


def world_source(work: Path, part: Part, rng: np.random.Generator, *, variants: int = 24) -> Iterator[Captioned]:
    """The embedded world's drawings, jittered as its denoiser saw them.

    Args:
        work: the built world (``clearance world data``).
        part: ``marked``: the subjects that stock archives like to mark, which the model learned with their marks, and the
            ordinary ones; ``new``: twelve subjects (:data:`SUBJECTS`) that the model has never seen.
        rng: of the jitter and the caption's template.
        variants: jittered versions of every drawing.
    """
    from PIL import Image

    from jobs.world.catalogue import TEMPLATES, concepts
    from jobs.world.overlays import jitter
    from jobs.world.pictures import load

    pixels, vendors, names = load(work)
    where = {(v, n): i for i, (v, n) in enumerate(zip(vendors, names, strict=True))}
    if part == "marked":
        subjects = [(c.icon, c.caption, c.prone_to or "") for c in concepts() if c.protected_vendor is None]
    else:
        subjects = [(name, name.replace("-", " "), "") for name in SUBJECTS]
    for icon, caption, hint in subjects:
        for vendor in sorted(set(vendors)):
            drawing = Image.fromarray(pixels[where[vendor, icon]])
            for number in range(variants):
                template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
                picture = np.asarray(jitter(drawing, rng))
                yield Captioned(f"{vendor}/{icon}#{number}", template.format(caption), picture, hint)


def drawn_source(
    prompts: Path, model: ModelConfig, generation: GenerationConfig, *, pictures: int, seed: int = 0
) -> Iterator[Captioned]:
    """What the model itself draws of prompts: for a model that draws marks the nearest set there is, and nobody's pictures.

    Args:
        prompts: a prompt file, as runs read them; negative prompts count too.
        model: the model that is to lose its marks.
        generation: how it is drawn.
        pictures: of every prompt.
        seed: of the noise, where the file names none.

    Raises:
        InputError: a prompt that cannot be drawn, or none.
        ConfigError, ModelError: see :func:`pipeline.model.families.load_model` and :class:`pipeline.engine.Engine`.
    """
    from jobs.prompts import read_prompts

    requests = read_prompts(prompts, base_seed=seed, samples_per_prompt=pictures)
    if wrong := [request for request in requests if request.problem is not None]:
        reason, said = wrong[0].problem or ("", "")
        raise InputError(f"{said} ({reason})", where=f"{prompts}: {wrong[0].key}", fix="Mend the prompt or leave it out")
    if not requests:
        raise InputError("holds no prompts", where=str(prompts), fix="Write at least one")
    return _drawn(requests, model, generation)


def _drawn(requests: Sequence[Request], model: ModelConfig, generation: GenerationConfig) -> Iterator[Captioned]:
    import torch

    from pipeline.engine import Engine
    from pipeline.model.families import load_model
    from pipeline.trajectory import Trajectory

    network = load_model(model)
    engine = Engine(
        network, rows=generation.rows, steps=generation.steps, guidance_scale=generation.guidance_scale,
        true_guidance_scale=generation.true_guidance_scale, scheduler=generation.scheduler,
    )  # fmt: skip
    for at in range(0, len(requests), DRAWN):
        some = requests[at : at + DRAWN]
        contexts, negatives = (
            network.encode_prompts(texts) for texts in ([r.prompt for r in some], [r.negative_prompt for r in some])
        )
        done = engine.finish(
            [
                Trajectory(
                    i, engine.initial_noise(r.seed), 0, contexts[i], negatives[i] if engine.guided else None, seed=r.seed
                )
                for i, r in enumerate(some)
            ]
        )
        pictures = network.decode(torch.stack([done[i] for i in range(len(some))]))
        for request, picture in zip(some, pictures, strict=True):
            yield Captioned(f"{request.key}@{request.seed}", request.prompt, picture)


def _uncaptioned(names: list[str], of: int, where: Path) -> InputError:
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    fix = "Write a .txt beside each picture, or list them in metadata.jsonl with file_name and caption"
    return InputError(f"{len(names)} of {of} pictures have no caption ({shown})", where=str(where), fix=fix)


def _words(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", where=str(path), fix="Save it as UTF-8") from None


def _sheet(path: Path) -> dict[str, Any]:
    """File → caption, as a metadata file lists them."""
    rows: list[Mapping[str, Any]]
    text = _words(path)
    try:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=str(path), fix="Write one picture a line") from None
    columns = {name for row in rows if isinstance(row, dict) for name in row}
    file = next((name for name in FILE_COLUMNS if name in columns), None)
    caption = _caption_column(columns, str(path))
    if file is None:
        raise InputError("no column names the pictures", where=str(path), fix="Name one 'file_name'")
    return {str(row.get(file) or ""): row.get(caption) for row in rows}


def _caption_column(columns: set[str] | list[str], where: str) -> str:
    for name in CAPTION_COLUMNS:
        if name in columns:
            return name
    found = ", ".join(sorted(columns)) or "none"
    raise InputError(f"no column holds captions (found: {found})", where=where, fix=f"Name one {CAPTION_COLUMNS[0]!r}")


def _pictures(folder: Path, captions: Mapping[str, Any], where: Path) -> Iterator[Captioned]:
    if not captions:
        raise InputError("lists no pictures", where=str(where), fix="Write at least one")
    without = [name for name, text in captions.items() if not isinstance(text, str) or not text.strip()]
    if without:
        raise _uncaptioned(without, len(captions), where)
    for name, text in captions.items():
        try:
            yield Captioned(name, text.strip(), read_picture(folder / name))
        except (OSError, ValueError, SyntaxError) as error:
            what = f"cannot be read ({error or type(error).__name__})"
            raise InputError(what, where=str(folder / name), fix="Mend it or take it off the list") from None


def _parquet(paths: list[Path]) -> Iterator[Captioned]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            file = pq.ParquetFile(path)
            image = _image_column(file.schema_arrow, path)
            caption = _caption_column(file.schema_arrow.names, str(path))
            number = 0
            for batch in file.iter_batches(64, columns=[image, caption]):
                for row in batch.to_pylist():
                    stored, text = row[image], row[caption]
                    data = stored.get("bytes") if isinstance(stored, dict) else stored
                    place = f"{path}: row {number}"
                    if not isinstance(text, str) or not text.strip():
                        raise _uncaptioned([f"row {number}"], file.metadata.num_rows, path)
                    if not data:
                        raise InputError("holds no picture", where=place, fix="Store the file's bytes in it")
                    try:
                        picture = read_picture(io.BytesIO(data))  # type: ignore[arg-type]
                    except (OSError, ValueError, SyntaxError) as error:
                        raise InputError(f"cannot be read ({error})", where=place, fix="Mend it") from None
                    name = (stored.get("path") if isinstance(stored, dict) else None) or f"{path.stem}-{number:06d}"
                    yield Captioned(name, text.strip(), picture)
                    number += 1
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"not a readable Parquet file ({error})", where=str(path), fix="Write it again") from None


def _image_column(schema: Any, path: Path) -> str:
    """The column that the Image feature names, else one called image, else the only binary one."""
    import pyarrow as pa

    def holds(kind: Any) -> bool:
        kind = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    fits = [field.name for field in schema if holds(field.type)]
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    declared = (noted.get("info") or {}).get("features") or {}
    named = [name for name in fits if (declared.get(name) or {}).get("_type") == "Image" or name == "image"]
    if not (named or fits):
        fix = "Name one 'image' and store struct<bytes, path> or the file's bytes in it"
        raise InputError("no column holds pictures", where=str(path), fix=fix)
    return str((named or fits)[0])
