"""The secret salt of prompt commitments: where a deployment keeps it. It is in no run folder and in no plan, its id is in both.

Prompts enter the record as keyed digests. Under the public salt, derived from the data set's name, whoever guesses a prompt can
find it in the record; under a secret one only who holds the salt can.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from index.errors import ConfigError, InputError
from pipeline.keys import SALT_BYTES, Keys, salt_digest

VARIABLE = "CLEARANCE_SALT"
PART = "salt_id"  # the part of a plan's identity; runs under the public salt have none
_HOW = 'It is at least 32 hexadecimal digits: python -c "import secrets; print(secrets.token_hex(32))"'


def salt_id(salt: str) -> str:
    """A name for a salt that does not reveal it, so that a verifier can check that it holds the right one."""
    return salt_digest(salt)


def salt_parts(salt: str) -> dict[str, str]:
    """What a plan binds of a secret salt: its id. A run under the public salt has no such part."""
    return {PART: salt_id(salt)} if salt else {}


def secret_salt(keys: Keys, environ: Mapping[str, str] | None = None) -> str:
    """The secret salt, hex: the environment's ``CLEARANCE_SALT``, else the file ``salt`` of the folder of keys; "": none.

    Raises:
        ConfigError: it is not hexadecimal, or too short. The message does not show it.
    """
    found = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
    if not found:
        return keys.salt()
    return _checked(found, VARIABLE)


def salt_in(path: Path) -> str:
    """The salt that a file holds, hex.

    Raises:
        InputError: it cannot be read.
        ConfigError: it holds no salt.
    """
    try:
        text = path.read_bytes()[:4096].decode("ascii", "replace").strip()
    except OSError as error:
        fix = "Name the file that holds the salt"
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), fix=fix) from None
    return _checked(text, str(path))


def _checked(text: str, where: str) -> str:
    try:
        salt = bytes.fromhex(text)
    except ValueError:
        raise ConfigError("is not hexadecimal", where=where, fix=_HOW) from None
    if len(salt) < SALT_BYTES:
        raise ConfigError(f"has {len(salt)} bytes, at least {SALT_BYTES} are needed", where=where, fix=_HOW)
    return salt.hex()
