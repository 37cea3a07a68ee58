"""Check this machine and installation: working parts, missing parts, and the duties of their licences."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from index.counted import counted
from index.errors import ClearanceError, ConfigError
from index.loading import loading
from index.shipped import STICKERS
from pipeline.keys import ENVIRONMENT, NEW, STATEMENT_PUBLIC, Keys, key_id
from pipeline.model.device import cpu_flags
from pipeline.model.machine import driver_version, libraries

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OWN_NAMES = ("pipeline", "index", "guards", "jobs")
CPU_FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}


@dataclass(frozen=True)
class Line:
    """One check: ``ok``, ``note`` (worth knowing, or optional and absent), or ``missing`` (required)."""

    topic: str
    state: Literal["ok", "note", "missing"]
    what: str


@loading()
def examine(weights: Path | None = None, keys: str = "") -> list[Line]:
    """Everything ``clearance doctor`` prints, in order.

    Args:
        weights: folder of the shipped weights; by default the one inside ``pipeline``.
        keys: folder of keys; by default the one that the environment names.
    """
    return [
        *_python(),
        *_packages(),
        *_device(),
        *_names(),
        *_guards(),
        *check_keys(keys),
        *watermarks(),
        *check_weights(weights or STICKERS.parent),
        cache_line(),
    ]


def cache_line() -> Line:
    """The copies of what lies on object stores: where they are, what they take, and how much they may."""
    from index.places.kept import LIMIT, cache_folder, copies, most_bytes

    try:
        most = most_bytes()
    except ClearanceError as error:
        return Line("cache", "missing", f"{error.where} {error.what}: {error.fix}")
    found = copies()
    total = sum(copy.bytes for copy in found)
    bound = "no bound" if math.isinf(most) else f"at most {most / 2**30:g} GiB"
    what = f"{cache_folder()}: {total / 2**30:.2f} GiB in {len(found)} copies; {bound} ({LIMIT})"
    return Line("cache", "note" if total > most else "ok", what + "; clear it: clearance cache clear" * bool(found))


def _python() -> Iterator[Line]:
    fine = sys.version_info >= (3, 11)
    yield Line(
        "python", "ok" if fine else "missing", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )


def _packages() -> Iterator[Line]:
    try:
        requirements = metadata.requires("clearance") or []
        extras = metadata.metadata("clearance").get_all("Provides-Extra") or []
        yield Line("clearance", "ok", metadata.version("clearance"))
    except metadata.PackageNotFoundError:
        yield Line("clearance", "missing", "the distribution is not installed: pip install -e .")
        return
    yield from packages(requirements, extras)


def packages(requirements: Iterable[str], extras: Iterable[str]) -> Iterator[Line]:
    """One line for every package that is required here, and one for every extra.

    Args:
        requirements: as a distribution states them, markers included.
        extras: names of the extras there are.
    """
    from packaging.requirements import Requirement

    stated = [Requirement(text) for text in requirements]
    here = [r for r in stated if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in here:
        version, fault = version_of(requirement.name), _fault(requirement)
        yield Line(requirement.name, "missing", fault) if fault else Line(requirement.name, "ok", version)
    for extra in extras:
        own = [r for r in stated if r not in here and r.marker is not None and r.marker.evaluate({"extra": extra})]
        absent = [requirement for requirement in own if _fault(requirement)]
        there = ", ".join(f"{r.name} {version_of(r.name)}" for r in own if r not in absent)
        if absent:
            names = ", ".join(requirement.name for requirement in absent)
            present = f"; installed: {there}" if there else ""
            yield Line(f"extra {extra}", "note", f"not installed: {names} (pip install 'clearance[{extra}]'){present}")
        elif own:
            yield Line(f"extra {extra}", "ok", there)


def _fault(requirement: Requirement) -> str:
    """What is wrong with an installed package, and what to do; empty: nothing."""
    version = version_of(requirement.name)
    if not version:
        return f"not installed: pip install '{requirement.name}'"
    if not requirement.specifier.contains(version, prereleases=True):
        wanted = f"{requirement.name}{requirement.specifier}"
        return f"{version} is installed, {requirement.specifier} is required: pip install '{wanted}'"
    return ""


def version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _device() -> Iterator[Line]:
    if find_spec("torch") is None:
        return
    try:
        import torch
    except Exception as error:  # a library that it is linked against may be missing
        yield Line("torch", "missing", f"it is installed and cannot be imported ({error}): install it again")
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = cpu_flags()
    features = [feature for flag, feature in CPU_FEATURES.items() if flag in flags]
    yield Line("cpu", "ok", f"{cores} cores; {', '.join(features) or 'no AVX2, AVX-512 or AMX seen'}")
    if not flags & {"avx512_bf16", "amx_bf16"}:
        yield Line("bf16", "note", 'no bf16 instructions: model.dtype = "float32" is likely to be faster')
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            yield Line(f"cuda:{number}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        yield card_software(libraries(on_cuda=True), driver_version())
    else:
        yield Line("cuda", "note", "no CUDA device: models run on the CPU")
    if find_spec("faiss") is not None:
        from index import device

        yield Line("index search", "ok", f"on {device.named()}")
    if find_spec("torchvision") is None:
        return
    from index.torchvision_ops import ensure

    if ensure():
        what = "its compiled operators do not load beside this torch: the stand-in in plain torch is in use"
        if find_spec("clearance_torchvision") is None:
            what += "; in Clearance alone, other programs of this environment need `pip install --no-deps -e .` once more"
        yield Line("torchvision", "note", what)
    else:
        yield Line("torchvision operators", "ok", "compiled")


def card_software(versions: Mapping[str, str], driver: str) -> Line:
    """The versions that pictures drawn on a card depend on.

    Args:
        versions: library → version; see :func:`pipeline.model.machine.libraries`.
        driver: of the card; empty: unknown.
    """
    there = ", ".join(f"{name} {version}" for name, version in versions.items())
    fused = "" if "triton" in versions else "; without triton the matching of token merging runs as torch's own operations"
    return Line("card software", "ok", f"driver {driver or 'unknown'}; {there}{fused}")


def _names() -> Iterator[Line]:
    """The four import names are generic: another distribution that brings one of them would shadow ours, or the reverse."""
    claims = strangers()
    for name, others in claims.items():
        yield Line(f"import name {name}", "missing", f"also claimed by {', '.join(others)}: uninstall one of them")
    if not claims:
        yield Line("import names", "ok", f"no other distribution claims {', '.join(OWN_NAMES)}")


def strangers() -> dict[str, list[str]]:
    """Other installed distributions that bring one of our top-level names."""
    claims: dict[str, list[str]] = {}
    for name, distributions in metadata.packages_distributions().items():
        others = sorted(set(distributions) - {"clearance"})
        if name in OWN_NAMES and others:
            claims[name] = others
    return claims


def _guards() -> Iterator[Line]:
    from guards.registry import describe

    for guard in describe():
        about = f"{', '.join(guard.categories)}; licence {guard.licence}"
        if guard.available:
            yield Line(f"guard {guard.name}", "ok", f"{guard.version}; {about}")
        else:
            yield Line(f"guard {guard.name}", "note", f"not available: {guard.reason} ({about})")
    if version_of("ultralytics"):
        duty = "AGPL-3.0: offering it over a network, or shipping weights trained with it, obliges you to publish your source"
        yield Line("ultralytics", "note", duty)


def check_keys(named: str = "", environ: Mapping[str, str] | None = None) -> Iterator[Line]:
    """The folder of keys, and which marks a run would carry with it today.

    Args:
        named: the folder; empty: the one that ``CLEARANCE_KEYS`` of the environment names.
        environ: the environment; by default the process's own.
    """
    try:
        keys = Keys.find(named, base=Path.cwd(), environ=environ)
    except ConfigError as error:
        yield Line("keys", "missing", f"{error.where}: {error.what}: {error.fix}")
        return
    if keys.folder is None:
        none = f"no folder: {ENVIRONMENT} is not set, though a run file may name one (marks.keys); {NEW}"
        yield Line("keys", "note", none)
    else:
        yield Line("keys", "ok", f"{keys.folder}, named by {keys.named_by if not named else 'you'}")
    yield from (Line("keys", "note", warning) for warning in keys.warnings())
    yield Line("mark XMP", "ok", "every accepted picture states its digital source type; anybody can remove it")
    yield _kind(_c2pa, keys, "mark C2PA")
    yield _kind(_watermark, keys, "mark watermark")
    yield _kind(_statement, keys, "key of statements")
    yield _kind(_salt, keys, "salt of prompts")


def _kind(look: Callable[[Keys, str], Line], keys: Keys, topic: str) -> Line:
    """One kind of key; a damaged one is a line, and the others are looked at all the same."""
    try:
        return look(keys, topic)
    except ClearanceError as error:
        return Line(topic, "missing", f"{error.where}: {error.what}: {error.fix}")


def _c2pa(keys: Keys, topic: str) -> Line:
    from pipeline.config import MarksConfig
    from pipeline.marking.markers import signing_key

    key = signing_key(MarksConfig(), keys)
    if key is None:
        return Line(topic, "note", "pictures carry no manifest: there is no c2pa.key")
    from pipeline.marking.c2pa import C2paSigner

    C2paSigner(key)  # signs a picture and reads it back
    until = f"certificate {key.key_id} of {key.subject} until {key.not_after:%Y-%m-%d}; no time stamp: readers refuse it later"
    if key.test:
        return Line(topic, "note", f"a test certificate: it will not be trusted by anyone else; {until}")
    return Line(topic, "ok", f"signed, and read back here; {until}")


def _watermark(keys: Keys, topic: str) -> Line:
    from pipeline.marking.watermark import DEFAULT, PUBLIC_KEY, watermark_class
    from pipeline.marking.watermark import key_id as watermark_id

    key = keys.watermark()
    cls = watermark_class(DEFAULT)
    size = f"{cls.probe()}, from {cls.least_side} pixels of the shorter side"
    if key is None or key == PUBLIC_KEY:
        return Line(topic, "note", f"{size}, with the published key: everybody can find, remove and imitate it")
    return Line(topic, "ok", f"{size}, with key {watermark_id(key)} of this deployment")


def _statement(keys: Keys, topic: str) -> Line:
    public = keys.statement_public()
    if keys.statement() is None or public is None:
        return Line(topic, "note", "none: a run's statement is not signed")
    return Line(
        topic, "ok", f"Ed25519, {key_id('statement', public.public_bytes_raw())}; give {STATEMENT_PUBLIC} to those who verify"
    )


def _salt(keys: Keys, topic: str) -> Line:
    from pipeline.salt import salt_id, secret_salt

    salt = secret_salt(keys)
    if not salt:
        return Line(topic, "note", "none: the commitment of a prompt that can be guessed reveals it")
    return Line(topic, "ok", f"secret, {salt_id(salt)}")


def watermarks() -> Iterator[Line]:
    """One line for every watermark: its version, the least side of a picture and its licence; or why it cannot be made here."""
    from pipeline.marking.watermark import DEFAULT, describe_watermarks

    for mark in describe_watermarks():
        about = f"from {mark.least_side} px; licence {mark.licence}"
        if mark.available:
            yield Line(f"watermark {mark.name}", "ok", f"{mark.version}; {about}" + ("; the default" * (mark.name == DEFAULT)))
        else:
            yield Line(f"watermark {mark.name}", "note", f"not available: {mark.reason} ({about})")


def check_weights(folder: Path) -> Iterator[Line]:
    """Compare each world's files with its ``digests.json``."""
    listings = sorted(folder.glob("*/digests.json"))
    if not listings:
        yield Line(
            "weights", "missing", f"none in {folder}: restore the folder from the repository, or `clearance lab world pack`"
        )
    for listing in listings:
        name = f"weights {listing.parent.name}"
        try:
            expected: dict[str, str] = json.loads(listing.read_text(encoding="utf-8"))
            wrong = [path for path, digest in expected.items() if not _matches(listing.parent / path, digest)]
        except (OSError, ValueError, AttributeError) as error:
            yield Line(name, "missing", f"{listing} cannot be read ({error}): restore it from the repository")
            continue
        if wrong:
            yield Line(
                name,
                "missing",
                f"{wrong[0]} is absent or changed ({counted(len(wrong), 'file')}): restore the folder from the repository",
            )
        else:
            size = sum((listing.parent / path).stat().st_size for path in expected) / 2**20
            yield Line(name, "ok", f"{counted(len(expected), 'file')}, {size:.1f} MiB, digests match")


def _matches(path: Path, digest: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest
