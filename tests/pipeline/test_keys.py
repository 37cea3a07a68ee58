"""What a folder of keys gives, and what is refused or warned of."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from index.errors import ConfigError
from jobs.keys import c2pa_test_chain, new_keys
from pipeline.audit.binding import PLAN_FILE
from pipeline.audit.shards import RUN_FILE
from pipeline.keys import RUN_FILES, SECRETS, Keys, refuse_inside

PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "keys"
    assert new_keys(folder) == []
    return folder


@pytest.fixture
def keys(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may harm."""
    return Path(shutil.copytree(made, tmp_path / "keys"))


def pem(key: object) -> bytes:
    form = (PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form)  # type: ignore[attr-defined, no-any-return]


def test_no_folder_is_no_keys() -> None:
    found = Keys.find("", base=Path("/"), environ={})
    assert found == Keys()
    assert (found.watermark(), found.statement(), found.c2pa(), found.salt(), found.anchors()) == (None, None, None, "", b"")
    assert found.ids() == {} and list(found.warnings()) == []


def test_the_run_file_comes_before_the_environment(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    environ = {"CLEARANCE_KEYS": str(other)}
    assert Keys.find("", base=tmp_path, environ=environ) == Keys(other, "CLEARANCE_KEYS")
    assert Keys.find("keys", base=made.parent, environ=environ) == Keys(made, "marks.keys")


def test_what_is_made_can_be_used(made: Path) -> None:
    keys = Keys(made)
    watermark, statement, c2pa = keys.watermark(), keys.statement(), keys.c2pa()
    assert watermark is not None and len(watermark) == 32
    assert statement is not None and c2pa is not None
    public = keys.statement_public()
    assert public is not None
    public.verify(statement.sign(b"text"), b"text")
    assert (c2pa.algorithm, c2pa.test, c2pa.expired()) == ("es256", True, "")
    assert len(bytes.fromhex(keys.salt())) == 32


def test_ids_reveal_nothing_and_are_the_same_every_time(made: Path) -> None:
    ids = Keys(made).ids()
    assert set(ids) == {"watermark.key", "statement.pub", "c2pa.pem", "salt"}
    assert ids == Keys(made).ids() and all(len(value) == 16 for value in ids.values())
    secret = "".join((made / name).read_text() for name in SECRETS)
    assert not [value for value in ids.values() if value in secret]


def test_a_secret_is_in_no_representation(made: Path) -> None:
    shown = repr(Keys(made).c2pa())
    assert "PRIVATE" not in shown and "TEST" in shown


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_folder_inside_a_run_is_refused(made: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(made, tmp_path / "run" / "deep" / "keys")
    (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(ConfigError, match="lies in the run folder"):
        Keys.find("run/deep/keys", base=tmp_path, environ={})


def test_the_files_of_a_run_are_those_of_the_audit() -> None:
    assert set(RUN_FILES) == {PLAN_FILE, RUN_FILE}


def test_a_run_that_would_be_made_around_the_keys_is_refused(made: Path, tmp_path: Path) -> None:
    refuse_inside(Keys(made), tmp_path)
    refuse_inside(Keys(), tmp_path)
    with pytest.raises(ConfigError, match="lies in the folder of the run"):
        refuse_inside(Keys(made, "marks.keys"), made.parent)


@pytest.mark.parametrize("environ", [{"CLEARANCE_KEYS": "/no/such/place"}, {}])
def test_a_folder_that_is_not_there_is_refused(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder of keys"):
        Keys.find("" if environ else "absent", base=tmp_path, environ=environ)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("watermark.key", b"not hex", "is not hexadecimal"),
        ("watermark.key", b"\xff\xfe", "is not hexadecimal"),
        ("watermark.key", b"00" * 31, "holds 31 bytes"),
        ("watermark.key", b"00" * 33, "holds 33 bytes"),
        ("salt", b"00", "holds 1 bytes"),
        ("salt", b"\n", "is empty"),
        ("statement.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "is not a private key"),
        ("statement.pub", b"x", "is not an Ed25519 public key"),
        ("c2pa.key", b"x", "is not a private key"),
        ("c2pa.pem", b"x", "holds no certificates"),
        ("c2pa-anchor.pem", b"x", "holds no certificates"),
        ("salt", b"0" * (2**20 + 2), "larger than 1 MiB"),
    ],
)
def test_a_damaged_file_is_named(keys: Path, name: str, data: bytes, message: str) -> None:
    (keys / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        Keys(keys).ids()
        Keys(keys).anchors()
    assert str(keys / name) in caught.value.where and caught.value.fix


def test_a_key_of_the_wrong_kind_is_named(keys: Path) -> None:
    (keys / "statement.key").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(ConfigError, match="is not an Ed25519 key"):
        Keys(keys).statement()


def test_halves_that_do_not_belong_together_are_refused(keys: Path) -> None:
    (keys / "statement.key").write_bytes(pem(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigError, match=r"does not belong to statement\.key"):
        Keys(keys).statement()
    (keys / "c2pa.key").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(ConfigError, match=r"its first certificate does not belong to c2pa\.key"):
        Keys(keys).c2pa()


@pytest.mark.parametrize(("absent", "there"), [("c2pa.key", "c2pa.pem"), ("c2pa.pem", "c2pa.key")])
def test_half_a_signer_is_an_error_and_not_none(keys: Path, absent: str, there: str) -> None:
    (keys / absent).unlink()
    with pytest.raises(ConfigError, match=f"{there} is of no use without it"):
        Keys(keys).c2pa()


def test_an_encrypted_key_is_named_as_one(keys: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    form = (PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret"))
    (keys / "c2pa.key").write_bytes(key.private_bytes(*form))
    with pytest.raises(ConfigError, match="is encrypted with a passphrase"):
        Keys(keys).c2pa()


def test_a_chain_in_the_wrong_order_is_refused(keys: Path) -> None:
    leaf, other = (keys / "c2pa.pem").read_bytes(), c2pa_test_chain()["c2pa-anchor.pem"]
    (keys / "c2pa.pem").write_bytes(leaf + other)
    with pytest.raises(ConfigError, match="was not issued by the next one"):
        Keys(keys).c2pa()
    (keys / "c2pa.pem").write_bytes(leaf + (keys / "c2pa-anchor.pem").read_bytes())
    assert Keys(keys).c2pa() is not None


def test_keys_that_c2pa_does_not_take(keys: Path) -> None:
    for private in (ec.generate_private_key(ec.SECP256K1()), rsa.generate_private_key(65537, 1024)):
        (keys / "c2pa.key").write_bytes(pem(private))
        with pytest.raises(ConfigError, match="of a kind that C2PA does not take"):
            Keys(keys).c2pa()


def test_a_certificate_that_has_ended_says_when(keys: Path) -> None:
    for name, data in c2pa_test_chain(days=1, now=datetime(2025, 3, 1, tzinfo=UTC)).items():
        (keys / name).write_bytes(data)
    key = Keys(keys).c2pa()
    assert key is not None
    assert key.expired() == "the C2PA certificate of Clearance TEST signer, Clearance TEST ended on 2025-03-02"
    assert key.expired(datetime(2025, 3, 1, 12, tzinfo=UTC)) == ""
    assert "begins on 2025-02-28 23:00" in key.expired(datetime(2025, 2, 1, tzinfo=UTC))
    assert key.expired(key.not_after - timedelta(seconds=1)) == "" and key.expired(key.not_after)


@pytest.mark.parametrize(
    ("organisation", "test"),
    [("Clearance TEST", True), ("C2PA FOR TESTING_ONLY", True), ("Test Laboratory GmbH", False), ("TEST", False)],
)
def test_a_certificate_is_called_a_test_only_if_it_is_known_as_one(keys: Path, organisation: str, test: bool) -> None:
    for name, data in c2pa_test_chain(organisation=organisation).items():
        (keys / name).write_bytes(data)
    key = Keys(keys).c2pa()
    assert key is not None and key.test is test


def test_secrets_as_an_orchestrator_mounts_them_are_read(keys: Path, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for file in keys.iterdir():
        (mounted / file.name).symlink_to(file)
    assert Keys(mounted).ids() == Keys(keys).ids()
    (mounted / "salt").unlink()
    (mounted / "salt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="a link that leads nowhere"):
        Keys(mounted).salt()


def test_a_secret_that_everyone_can_read_is_warned_of(keys: Path) -> None:
    (keys / "c2pa.pem").chmod(0o644)
    (keys / "statement.key").chmod(0o644)
    (keys / "salt").chmod(0o640)
    [warning] = Keys(keys).warnings()
    assert warning == f"{keys}/statement.key is open to every user of this machine (mode 644): chmod 600 {keys}/statement.key"


def test_keys_in_a_git_tree_are_warned_of(keys: Path) -> None:
    (keys.parent / ".git").mkdir()
    [warning] = Keys(keys).warnings()
    assert "lies in the git working tree" in warning


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_secret_that_cannot_be_read_is_named(keys: Path) -> None:
    (keys / "salt").chmod(0)
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(keys).salt()
