"""Receipts (COSE, RFC 9942): a signed proof that one request, or one shard, is in a sealed run, and of nothing else.

A receipt is a COSE_Sign1 (RFC 9052) whose payload, detached, is the root of an RFC 9162 tree; its unprotected header holds the
path from the leaf to that root (``vds`` 1, ``vdp`` 396). Both trees are in ``run.json``: a request is a leaf of the content
root, a shard a leaf of the Merkle root over the record. Beside the receipt stands what the leaf is made of, so that its holder
can make the leaf again. Any verifier of COSE receipts checks it with the public key of who signs the run's statements.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import InputError, IntegrityError
from index.storage import entry_of
from pipeline.audit.content import requests_content
from pipeline.audit.ledger import scan_statement
from pipeline.audit.shards import RUN_FILE, committed
from pipeline.audit.tree import inclusion_path, merkle_root

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# COSE header parameters and algorithms: RFC 9052, RFC 9053, RFC 9597, RFC 9942.
ALG, KID, CWT_CLAIMS, VDS, VDP = 1, 4, 15, 395, 396
EDDSA, RFC9162_SHA256, INCLUSION = -8, 1, -1
ISSUER, SUBJECT, ISSUED_AT = 1, 2, 6
SIGN1 = 18  # the CBOR tag of COSE_Sign1


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A receipt that was made.

    Attributes:
        data: the COSE_Sign1 message.
        leaf: the entry of the tree, hex: what a verifier is given beside the receipt.
        root: of the tree, hex. tree: ``content_root`` or ``merkle_root``, as ``run.json`` names it.
        index, size: the leaf's place, and how many leaves there are.
        made_of: plain data that the leaf is the digest of, and how.
    """

    data: bytes
    leaf: str
    root: str
    tree: str
    index: int
    size: int
    made_of: Mapping[str, Any]


def receipt_of_request(folder: Path, key: str, signer: Ed25519PrivateKey, key_id: str) -> Receipt:
    """A receipt for one request: its seed, its outcome, and of every attempt the pixels' digest, findings and decision.

    Raises:
        InputError: no request has that key, or the run is not sealed.
        IntegrityError: the rows do not match the statement.
    """
    predicate = _sealed(folder)
    leaves, found = [], None
    for content in requests_content(folder):
        if content["sample"]["request_key"] == key:
            found = content
        leaves.append((content["sample"]["row_no"], content["leaf"]))
    if found is None:
        raise InputError(f"no request has the key {key!r}", where=str(folder), fix="Name a key of the prompts file")
    digests = [leaf for _, leaf in sorted(leaves)]
    how = "leaf = sha256 of the canonical JSON of [sha256 of that of sample, [sha256 of that of each attempt]]"
    made_of = {"sample": found["sample"], "attempts": found["attempts"], "how": how}
    return _receipt(predicate, "content_root", digests, found["leaf"], made_of, signer, key_id)


def receipt_of_shard(folder: Path, shard_id: str, signer: Ed25519PrivateKey, key_id: str) -> Receipt:
    """A receipt for one shard: the digests of its files, and what its chains end with; raises as above."""
    predicate, receipts = _sealed(folder), committed(folder)
    if shard_id not in receipts:
        raise InputError(f"there is no shard {shard_id!r}", where=str(folder), fix=f"Name one of {', '.join(receipts)}"[:200])
    marker = json.loads(receipts[shard_id].marker)
    how = "leaf = sha256 of the canonical JSON of marker without its digest"
    made_of = {"marker": marker, "how": how}
    digests = [receipt.digest for receipt in receipts.values()]
    return _receipt(predicate, "merkle_root", digests, receipts[shard_id].digest, made_of, signer, key_id)


def _sealed(folder: Path) -> Mapping[str, Any]:
    statement, problems = scan_statement(folder)
    if entry_of(folder, RUN_FILE) is None:
        raise InputError("the run is not sealed, so no tree is stated", where=str(folder), fix="Let the run end first")
    if statement is None or problems:
        raise IntegrityError(problems[0][1], where=f"{folder}/{RUN_FILE}", fix="Restore it from a copy")
    predicate: Mapping[str, Any] = statement["predicate"]
    return predicate


def _receipt(
    predicate: Mapping[str, Any],
    tree: str,
    leaves: Sequence[str],
    leaf: str,
    made_of: Mapping[str, Any],
    signer: Ed25519PrivateKey,
    key_id: str,
) -> Receipt:
    import cbor2

    root, index = merkle_root(leaves), leaves.index(leaf)
    if tree not in predicate:
        what = f"states no {tree}: the run is of an earlier version"
        raise InputError(what, where=RUN_FILE, fix="Make a receipt for a shard instead")
    if predicate[tree] != root:
        fix = "Run `clearance verify`; nothing is signed that does not match"
        raise IntegrityError(f"the {tree} does not match the rows", where=RUN_FILE, fix=fix)
    claims = {
        ISSUER: f"urn:clearance:key:{key_id}",
        SUBJECT: f"urn:clearance:run:{predicate['run_id']}:{tree}",
        ISSUED_AT: int(time.time()),
    }
    protected = {ALG: EDDSA, KID: bytes.fromhex(key_id), CWT_CLAIMS: claims, VDS: RFC9162_SHA256}
    head = cbor2.dumps(protected, canonical=True)
    path = [bytes.fromhex(node) for node in inclusion_path(leaves, index)]
    proof = cbor2.dumps([len(leaves), index, path], canonical=True)
    signature = signer.sign(cbor2.dumps(["Signature1", head, b"", bytes.fromhex(root)], canonical=True))
    message = cbor2.CBORTag(SIGN1, [head, {VDP: {INCLUSION: [proof]}}, None, signature])
    return Receipt(
        data=cbor2.dumps(message, canonical=True),
        leaf=leaf,
        root=root,
        tree=tree,
        index=index,
        size=len(leaves),
        made_of=made_of,
    )
