"""Receipts: made here, checked by a verifier of COSE receipts that is not ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scitt_cose import merkle, verify_receipt
from typer.testing import CliRunner

from index.errors import ConfigError, InputError, IntegrityError
from jobs.cli.main import app
from jobs.proof import receipt
from jobs.run.local_runner import run_local
from pipeline.audit.receipt import Receipt
from pipeline.audit.shards import committed
from pipeline.audit.tree import inclusion_path, merkle_root
from pipeline.keys import Keys
from tests.proofs import keys_in
from tests.tampering.forge import restate

PROMPTS = ["cat", "owl", "steered fox", "copy", "lemon"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return keys_in(tmp_path_factory.mktemp("deployment") / "keys")


@pytest.fixture
def run(make_plan: Callable[..., Any], open_loop: Any, tmp_path: Path) -> Path:
    return run_local(make_plan(PROMPTS), tmp_path / "run", open_loop=open_loop).folder


def pem(keys: Keys) -> bytes:
    assert keys.folder is not None
    return (keys.folder / "statement.pub").read_bytes()


def digest(value: Any) -> str:
    """As ``how`` describes it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def stated(folder: Path, name: str) -> str:
    return str(json.loads((folder / "run.json").read_bytes())["predicate"][name])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_paths_are_those_of_another_implementation(size: int) -> None:
    leaves = [f"{n:064x}" for n in range(size)]
    assert merkle_root(leaves) == merkle.merkle_root(leaves)
    for index in range(size):
        path = inclusion_path(leaves, index)
        assert path == merkle.inclusion_proof(leaves, index)
        assert merkle.verify_inclusion(leaves[index], index, size, path, merkle_root(leaves))


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_a_receipt_of_every_request_is_valid_to_scitt_cose(run: Path, keys: Keys, number: int) -> None:
    from pipeline.audit.ledger import sample_rows

    key = [row["request_key"] for row in sample_rows(run, ["request_key"])][number]
    made = receipt(run, keys, key=key)
    found = verify_receipt(made.data, leaf_entry_hex=made.leaf, log_public_key_pem=pem(keys))
    assert found.ok, found.errors
    assert (found.root, found.tree_size) == (stated(run, "content_root"), len(PROMPTS))
    assert made.made_of["sample"]["request_key"] == key
    assert digest([digest(made.made_of["sample"]), [digest(attempt) for attempt in made.made_of["attempts"]]]) == made.leaf
    assert found.subject == f"urn:clearance:run:{stated(run, 'run_id')}:content_root"
    assert found.protected_header_ext[4] == bytes.fromhex(keys.ids()["statement.pub"])


def test_a_receipt_of_every_shard_is_valid_to_scitt_cose(run: Path, keys: Keys) -> None:
    for shard_id, committed_shard in committed(run).items():
        made = receipt(run, keys, shard=shard_id)
        found = verify_receipt(made.data, leaf_entry_hex=committed_shard.digest, log_public_key_pem=pem(keys))
        assert found.ok and found.root == stated(run, "merkle_root"), found.errors


def a_receipt(run: Path, keys: Keys) -> Receipt:
    return receipt(run, keys, shard=sorted(committed(run))[0])


def test_another_leaf_another_key_and_any_changed_byte_fail(run: Path, keys: Keys, tmp_path: Path) -> None:
    made = a_receipt(run, keys)

    def valid(data: bytes, leaf: str, public: bytes) -> bool:
        return bool(verify_receipt(data, leaf_entry_hex=leaf, log_public_key_pem=public).ok)

    assert valid(made.data, made.leaf, pem(keys))
    assert not valid(made.data, "00" * 32, pem(keys))
    assert not valid(made.data, made.leaf, pem(keys_in(tmp_path / "other")))
    for place in range(0, len(made.data), 5):
        changed = made.data[:place] + bytes([made.data[place] ^ 1]) + made.data[place + 1 :]
        assert not valid(changed, made.leaf, pem(keys)), place


def test_a_statement_that_does_not_match_gets_no_receipt(run: Path, keys: Keys) -> None:
    restate(run, lambda predicate: predicate.update(merkle_root="00" * 32))
    with pytest.raises(IntegrityError, match="does not match the rows"):
        a_receipt(run, keys)


def test_what_was_named_wrongly_is_a_sentence(run: Path, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no request has the key 'nobody'"):
        receipt(run, keys, key="nobody")
    with pytest.raises(InputError, match="there is no shard"):
        receipt(run, keys, shard="9")
    with pytest.raises(InputError, match="one request or one shard"):
        receipt(run, keys)
    with pytest.raises(ConfigError, match="no key to sign a receipt"):
        receipt(run, Keys(), key="nobody")
    with pytest.raises(InputError, match="not sealed"):
        receipt(tmp_path, keys, key="x")


def test_the_command_writes_receipt_and_leaf(run: Path, keys: Keys, tmp_path: Path) -> None:
    shard = sorted(committed(run))[1]
    result = CliRunner().invoke(
        app, ["receipt", str(run), "--shard", shard, "--keys", str(keys.folder), "--out", str(tmp_path / "r.cose"), "--json"]
    )
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "r.cose.json").read_bytes())
    assert about == json.loads(result.stdout) and about["made_of"]["marker"]["shard_id"] == shard
    data = (tmp_path / "r.cose").read_bytes()
    assert verify_receipt(data, leaf_entry_hex=about["leaf"], log_public_key_pem=pem(keys)).ok
