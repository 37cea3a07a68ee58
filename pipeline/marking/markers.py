"""What a worker marks accepted pictures with: opened once from the run file's table and the deployment's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from index.errors import ConfigError
from pipeline.config import MarksConfig
from pipeline.keys import NEW, C2paKey, Keys

if TYPE_CHECKING:
    from pipeline.marking.c2pa import C2paSigner
    from pipeline.marking.watermark import Watermark

SIGNED, WATERMARK, WATERMARK_KEY = "marks.c2pa", "marks.watermark", "marks.watermark_key"  # parts of a plan's identity
TEST_SIGNED = "signed by a test certificate"  # the value of marks.c2pa where the certificate calls itself one


@dataclass(frozen=True, kw_only=True)
class Markers:
    """What marks are made with; it holds secrets, and is in no row and no plan.

    Attributes:
        signer: signs the C2PA manifests; None: files get none.
        watermark: the scheme; None: pictures get none. watermark_key: its key.
        without: why pictures get no watermark: ``off``.
        label: the visible label's text; ``off``: none.
        parts: what a plan binds of it: a worker that would mark otherwise is refused.
    """

    signer: C2paSigner | None = None
    watermark: Watermark | None = None
    watermark_key: bytes = field(default=b"", repr=False)
    without: str = ""
    label: str = "off"
    parts: Mapping[str, str] = field(default_factory=dict)


def open_markers(config: MarksConfig, keys: Keys) -> Markers:
    """Open what the run file asks for and the keys allow.

    Raises:
        ConfigError: a key is damaged, its certificate has ended or cannot sign, or a required mark cannot be made; or there is
            no such watermark.
        WatermarkUnavailable: the watermark's package or weights are missing.
    """
    from pipeline.marking.watermark import chosen, watermark_class

    key, signer = signing_key(config, keys), None
    if key is not None:
        from pipeline.marking.c2pa import C2paSigner
        from pipeline.marking.key_service import service

        sign = service(config.signer, key) if config.signer else None
        signer = C2paSigner(key, training=config.training, sign=sign)
    scheme = chosen(config.watermark)
    return Markers(
        signer=signer,
        watermark=watermark_class(scheme).open(allow_download=config.allow_download) if scheme else None,
        watermark_key=watermark_key(keys) if scheme else b"",
        without="" if scheme else "off",
        label=config.label,
        parts=marks_parts(config, keys),
    )


def watermark_key(keys: Keys) -> bytes:
    """The deployment's key for watermarks; without one the published key, with which everybody can find and imitate them.

    Raises:
        ConfigError: it is damaged.
    """
    from pipeline.marking.watermark import PUBLIC_KEY

    return keys.watermark() or PUBLIC_KEY


def marks_parts(config: MarksConfig, keys: Keys) -> dict[str, str]:
    """What a plan binds of the marks beside the run file: signed or not, by a test certificate or not; watermark and key id.

    A certificate may be renewed between two sessions of a run: its id is in every row instead.

    Raises:
        ConfigError: as :func:`signing_key`, and where the watermark's key is damaged or there is no such watermark.
        WatermarkUnavailable: the watermark's package or weights are missing.
    """
    from pipeline.marking.watermark import chosen, key_id, watermark_class

    signs = signing_key(config, keys)
    parts = {} if signs is None else {SIGNED: TEST_SIGNED if signs.test else "signed"}
    if scheme := chosen(config.watermark):
        cls = watermark_class(scheme)
        parts[WATERMARK] = cls.version if config.allow_download else cls.probe()
        parts[WATERMARK_KEY] = key_id(watermark_key(keys))
    return parts


def signing_key(config: MarksConfig, keys: Keys) -> C2paKey | None:
    """The key that signs the manifests of a run; None: they get none, and the run file allows that.

    Raises:
        ConfigError: it is damaged, its certificate has ended, or it is missing, and a manifest is required or a service named.
    """
    key = keys.c2pa(elsewhere=bool(config.signer)) if config.c2pa != "off" else None
    where = f"marks.c2pa: {keys.folder}" if keys.folder is not None else "marks.c2pa"
    if key is None and config.signer and config.c2pa != "off":
        what = "a key service is named, and there is no c2pa.pem with the certificate of its key: no picture would be signed"
        fix = "Put the certificates into c2pa.pem of the folder of keys (marks.keys), or remove marks.signer"
        raise ConfigError(what, where=f"marks.signer: {keys.folder}" if keys.folder is not None else "marks.signer", fix=fix)
    if key is None and config.c2pa == "required":
        fix = f"Name a folder with c2pa.key and c2pa.pem as marks.keys; {NEW}"
        raise ConfigError("a C2PA manifest is required, and there is no key that signs it", where=where, fix=fix)
    if key is not None and (why := key.expired()):
        fix = 'Put a certificate that is valid today into c2pa.pem and its key into c2pa.key, or set marks.c2pa = "off"'
        raise ConfigError(f"pictures cannot be signed: {why}", where=where, fix=fix)
    return key
