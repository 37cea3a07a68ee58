"""Signatures and time stamps of runs: made, checked, checked again by tools that are not ours, and missed when removed."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index.errors import ConfigError, InputError, IntegrityError, RunStopped
from jobs.cli.main import app
from jobs.proof import id_of, sign, signer_of, trust_in
from jobs.run.local_runner import run_local
from jobs.run.verdict import verify_run
from pipeline.audit import timestamp
from pipeline.audit.envelope import ENVELOPE_FILE, envelope_bytes, read_envelope, remote_signer, sign_run, signed_by
from pipeline.audit.events import append_event, read_events
from pipeline.audit.ledger import seal
from pipeline.audit.stage_proof import Trust
from pipeline.audit.timestamp import STAMP_FILE, post, stamp_run, stamped_at
from pipeline.audit.verifier.clearance_verify import Run
from pipeline.audit.verify import verify
from pipeline.keys import Keys
from tests.proofs import Authority, keys_in, openssl
from tests.tampering.forge import redo_events

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return keys_in(tmp_path_factory.mktemp("deployment") / "keys")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority") / "tsa")


@pytest.fixture
def run(make_plan: Make, run_of: Callable[..., Path], tmp_path: Path) -> Path:
    """A sealed run that nobody signed."""
    return run_of(make_plan(["cat", "owl", "fox"]), tmp_path / "run")


@pytest.fixture
def signed(run: Path, keys: Keys) -> Path:
    sign(run, keys)
    return run


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=200)


def stage(folder: Path, name: str, trust: Trust | None = None) -> tuple[str, str]:
    """State and sentence of a stage; for a failed one what is wrong."""
    found = next(one for one in verify(folder, None, trust or Trust()).stages if one.name == name)
    return found.state, found.problems[0].what if found.problems else found.sentence


# --- signatures ------------------------------------------------------------------------------------------------------------


def test_a_run_that_nobody_signed_is_called_so(run: Path) -> None:
    assert stage(run, "signature") == ("skip", "the run was not signed") and signed_by(run) == "not signed"
    assert "not signed" in call("status", run).output


def test_a_run_with_keys_is_signed_when_it_ends(
    make_plan: Make, open_loop: Any, tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARANCE_KEYS", str(keys.folder))
    folder = run_local(make_plan(["cat"]), tmp_path / "run", open_loop=open_loop).folder
    assert [event["kind"] for event in read_events(folder)][-2:] == ["run.sealed", "run.signed"]
    assert stage(folder, "signature", trust_in(keys))[0] == "pass" and verify_run(folder).ok
    assert f"signed with key {keys.ids()['statement.pub']}" in call("status", folder).output


def test_a_damaged_key_stops_a_run_before_it_begins(
    make_plan: Make, open_loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "statement.key").write_text("no key")
    monkeypatch.setenv("CLEARANCE_KEYS", str(tmp_path / "keys"))
    with pytest.raises(ConfigError, match="is not a private key"):
        run_local(make_plan(["cat"]), tmp_path / "run", open_loop=open_loop)
    assert not (tmp_path / "run").exists()


def test_signing_later_is_an_event_and_verifies(signed: Path, keys: Keys) -> None:
    event = read_events(signed)[-1]
    assert event["kind"] == "run.signed" and event["digests"]["key_id"] == keys.ids()["statement.pub"]
    assert verify_run(signed, trust=trust_in(keys)).ok
    assert stage(signed, "signature", trust_in(keys))[0] == "pass"


def test_without_a_key_the_signature_is_skipped_and_does_not_pass(signed: Path) -> None:
    state, why = stage(signed, "signature")
    assert state == "skip" and "no public key was given" in why


def test_the_envelope_is_the_statement_byte_for_byte(signed: Path) -> None:
    envelope = json.loads((signed / ENVELOPE_FILE).read_bytes())
    assert base64.b64decode(envelope["payload"]) == (signed / "run.json").read_bytes()
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert json.loads(base64.b64decode(envelope["payload"]))["_type"] == "https://in-toto.io/Statement/v1"


def test_securesystemslib_and_openssl_agree_on_the_signature(signed: Path, keys: Keys, tmp_path: Path) -> None:
    """Two checks that share no code with ours: the library's own, and openssl over DSSE's encoding made by hand."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

    plain = json.loads((signed / ENVELOPE_FILE).read_bytes())
    signature, payload = base64.b64decode(plain["signatures"][0]["sig"]), base64.b64decode(plain["payload"])
    public = keys.statement_public()
    assert public is not None
    key = SSlibKey.from_crypto(public, keyid=keys.ids()["statement.pub"])
    assert Envelope.from_dict(json.loads((signed / ENVELOPE_FILE).read_bytes())).verify([key], 1)
    kind = plain["payloadType"].encode()

    def by_openssl(what: bytes) -> bool:
        (tmp_path / "pae").write_bytes(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(what), what))
        (tmp_path / "sig").write_bytes(signature)
        pem = keys.folder / "statement.pub" if keys.folder else ""
        named = ("-inkey", pem, "-sigfile", tmp_path / "sig", "-in", tmp_path / "pae")
        return openssl("pkeyutl", "-verify", "-pubin", "-rawin", *named).returncode == 0

    assert by_openssl(payload) and not by_openssl(payload.replace(b'"samples": 3', b'"samples": 4'))


def test_another_key_does_not_pass(signed: Path, tmp_path: Path) -> None:
    other = keys_in(tmp_path / "other")
    state, why = stage(signed, "signature", trust_in(other))
    assert state == "fail" and f"the key given is {other.ids()['statement.pub']}" in why


def test_a_key_that_borrows_the_id_does_not_pass(signed: Path, keys: Keys, tmp_path: Path) -> None:
    pem = (tmp_path / "p").parent / "other.pem"
    pem.write_bytes((keys_in(tmp_path / "other").folder or tmp_path).joinpath("statement.pub").read_bytes())
    state, why = stage(signed, "signature", Trust(pem.read_bytes(), keys.ids()["statement.pub"]))
    assert state == "fail" and "not valid under key" in why


def test_a_removed_signature_is_missed(signed: Path) -> None:
    (signed / ENVELOPE_FILE).unlink()
    assert stage(signed, "signature") == ("fail", "is missing; event 3 names a signature")


def test_a_run_that_must_be_signed_and_is_not_fails(run: Path, keys: Keys) -> None:
    """Who removes signature and event, and redoes the events' chain, is found by those who know that it was signed."""
    assert stage(run, "signature", trust_in(keys)) == ("skip", "the run was not signed")
    assert keys.folder is not None
    state, why = stage(run, "signature", trust_in(Keys(), keys.folder / "statement.pub"))
    assert state == "fail" and "its signature was removed" in why


def test_a_changed_signature_fails_with_and_without_the_key(signed: Path, keys: Keys) -> None:
    path = signed / ENVELOPE_FILE
    whole = json.loads(path.read_bytes())
    whole["signatures"][0]["sig"] = base64.b64encode(bytes(64)).decode()
    path.write_bytes(json.dumps(whole, sort_keys=True, indent=1).encode() + b"\n")
    assert stage(signed, "signature") == ("fail", "is not the envelope that event 3 names")
    problems = [p.what for p in verify(signed, None, trust_in(keys)).problems]
    assert any("the signature is not valid under key" in what for what in problems)


@pytest.mark.parametrize("at", [0, 40, 900, -30, -3])
def test_any_other_byte_of_the_envelope_is_found(signed: Path, at: int) -> None:
    data = bytearray((signed / ENVELOPE_FILE).read_bytes())
    data[at] ^= 1
    (signed / ENVELOPE_FILE).write_bytes(bytes(data))
    assert stage(signed, "signature")[0] == "fail"


def test_the_envelope_of_another_run_is_found(
    signed: Path, keys: Keys, make_plan: Make, open_loop: Any, tmp_path: Path
) -> None:
    other = run_local(make_plan(["lion"]), tmp_path / "other", open_loop=open_loop).folder
    sign(other, keys)
    shutil.copy(other / ENVELOPE_FILE, signed / ENVELOPE_FILE)
    problems = [p.what for p in verify(signed, None, trust_in(keys)).problems if p.where == ENVELOPE_FILE]
    assert any("signs another statement than the one in run.json" in what for what in problems)


def test_an_envelope_that_no_event_names_is_found(run: Path, keys: Keys, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    sign(copy, keys)
    shutil.copy(copy / ENVELOPE_FILE, run / ENVELOPE_FILE)
    assert stage(run, "signature", trust_in(keys)) == ("fail", "no event names this signature")


def test_a_statement_that_was_changed_after_signing_fails(signed: Path, keys: Keys) -> None:
    statement = json.loads((signed / "run.json").read_bytes())["predicate"]
    seal(signed, {**statement, "policy_name": "a better one"})
    state, why = stage(signed, "signature", trust_in(keys))
    assert state == "fail" and why.startswith("signs the statement of an earlier seal")
    sign(signed, keys)
    assert stage(signed, "signature", trust_in(keys))[0] == "pass"


def test_a_statement_that_was_changed_since_the_last_seal_is_not_to_be_signed_again(signed: Path, keys: Keys) -> None:
    sealed = (signed / "run.json").read_bytes()
    (signed / "run.json").write_bytes(sealed.replace(b"default", b"defavlt"))
    state, why = stage(signed, "signature", trust_in(keys))
    assert state == "fail" and "run.json was changed since the last seal" in why and "clearance sign" not in why
    assert base64.b64decode(json.loads((signed / ENVELOPE_FILE).read_bytes())["payload"]) == sealed
    assert any("changed since the last seal" in what for _, _, what in Run(str(signed)).verify().problems)


def test_what_to_keep_of_a_run_is_printed_and_compared(signed: Path) -> None:
    """The events after the seal are bound by the last one's digest alone: an end that was cut off is whole otherwise."""
    older = Path(shutil.copytree(signed, signed.parent / "older"))
    kept = append_event(signed, "sample.quarantined", "takedown", "a claim", samples=["s"], details={"claim": "c-1"})
    found = json.loads(call("verify", signed, "--json").stdout)["anchors"]
    run_sha256 = hashlib.sha256((signed / "run.json").read_bytes()).hexdigest()
    assert found == {"events": kept["seq"] + 1, "head": kept["record_sha256"], "run_sha256": run_sha256}
    assert Run(str(signed)).verify().anchors == found
    assert f"head {found['head']} of {found['events']} events" in call("verify", signed).output
    append_event(signed, "hold.set", "counsel", "a claim", details={"matter": "m"})
    assert call("verify", signed, "--head", found["head"]).exit_code == 0
    assert not Run(str(signed), head=found["head"]).verify().problems
    shutil.rmtree(signed / "events")
    shutil.copytree(older / "events", signed / "events")
    shutil.copy(older / "events-head.json", signed)
    assert verify(signed).ok
    refused = call("verify", signed, "--head", found["head"])
    assert refused.exit_code == 1 and "hold no event of digest" in refused.output
    assert Run(str(signed), head=found["head"]).verify().problems
    assert call("verify", signed, "--head", "abc").exit_code == 2


def test_events_after_the_signature_are_not_covered_and_break_nothing(signed: Path, keys: Keys) -> None:
    append_event(signed, "run.noted", "reviewer", "fine")
    found = verify(signed, None, trust_in(keys))
    assert found.ok and "no later event" in next(s.sentence for s in found.stages if s.name == "signature")


def test_what_was_changed_is_not_signed(run: Path, keys: Keys) -> None:
    path = run / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"samples": 3', b'"samples": 4'))
    with pytest.raises(IntegrityError, match="was changed"):
        sign(run, keys)
    assert not (run / ENVELOPE_FILE).exists()


def test_an_unfinished_run_is_not_signed(tmp_path: Path, keys: Keys) -> None:
    with pytest.raises(InputError, match="no statement to sign"):
        sign(tmp_path, keys)


def test_without_a_key_nothing_is_signed(run: Path) -> None:
    with pytest.raises(ConfigError, match="no key to sign with"):
        sign(run, Keys())
    result = call("sign", run)
    assert result.exit_code == 2 and "clearance keys new" in result.output


def test_a_signer_by_uri_signs(run: Path, keys: Keys) -> None:
    """The scheme of files stands for the services, which no test can reach."""
    assert keys.folder is not None
    made = sign(run, Keys(), uri=f"file2:{keys.folder}/statement.key", public=keys.folder / "statement.pub")
    assert made.key_id == keys.ids()["statement.pub"] and stage(run, "signature", trust_in(keys))[0] == "pass"


def test_an_unknown_signer_is_a_sentence(keys: Keys) -> None:
    assert keys.folder is not None
    pem = (keys.folder / "statement.pub").read_bytes()
    with pytest.raises(ConfigError, match="cannot be used as a signer") as caught:
        remote_signer("abacus:7", pem, id_of(pem, "x"))
    assert "awskms" in caught.value.fix
    with pytest.raises(ConfigError, match="needs its public key"):
        sign(Path(), Keys(), uri="awskms:x")


def test_a_signer_that_fails_leaves_a_sealed_run_and_says_so(run: Path, keys: Keys) -> None:
    signer = signer_of(keys)
    assert signer is not None

    class Unreachable(type(signer)):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        def sign(self, payload: bytes) -> Any:
            raise OSError("no route to the key service")

    with pytest.raises(RunStopped, match="no route") as caught:
        sign_run(run, Unreachable())
    assert "clearance sign" in caught.value.fix and verify(run).ok and not (run / ENVELOPE_FILE).exists()


def test_the_command_line_signs_and_verifies(run: Path, keys: Keys) -> None:
    assert keys.folder is not None
    done = call("sign", run, "--keys", keys.folder, "--json")
    assert json.loads(done.stdout)["key_id"] == keys.ids()["statement.pub"]
    result = call("verify", run, "--key", keys.folder / "statement.pub", "--json")
    states = {one["name"]: one["state"] for one in json.loads(result.stdout)["stages"]}
    assert result.exit_code == 0 and states["signature"] == "pass" and states["time stamp"] == "skip"
    (run / ENVELOPE_FILE).unlink()
    assert call("verify", run).exit_code == 1


def test_an_envelope_is_written_in_one_form(signed: Path) -> None:
    found = read_envelope(signed)
    assert found is not None and envelope_bytes(found[0]) == found[1]


# --- time stamps -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stamped(signed: Path, authority: Authority) -> Path:
    stamp_run(signed, "http://test", authority.root.read_bytes(), ask=authority.answer)
    return signed


def trusting(authority: Authority) -> Trust:
    return Trust(tsa_roots=authority.root.read_bytes())


def test_a_stamped_run_passes_and_openssl_agrees(stamped: Path, authority: Authority) -> None:
    state, sentence = stage(stamped, "time stamp", trusting(authority))
    assert state == "pass" and sentence.startswith("run.dsse.json existed at 20") and verify(stamped).ok
    assert authority.confirms(stamped / STAMP_FILE, stamped / ENVELOPE_FILE)
    assert "stamped at 20" in stamped_at(stamped)


def test_the_stamp_is_an_event(stamped: Path) -> None:
    event, data = read_events(stamped)[-1], (stamped / STAMP_FILE).read_bytes()
    assert event["kind"] == "run.stamped" and event["digests"]["tsr_sha256"] == hashlib.sha256(data).hexdigest()


def test_without_roots_the_time_stamp_is_skipped(stamped: Path) -> None:
    state, why = stage(stamped, "time stamp")
    assert state == "skip" and "nobody to trust was named" in why


def test_another_authority_is_not_trusted_by_us_and_not_by_openssl(stamped: Path, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "other")
    state, why = stage(stamped, "time stamp", trusting(other))
    assert state == "fail" and "not valid under the roots given" in why
    assert not other.confirms(stamped / STAMP_FILE, stamped / ENVELOPE_FILE)


def test_a_tampered_statement_fails_both(stamped: Path, authority: Authority, keys: Keys) -> None:
    seal(stamped, {**json.loads((stamped / "run.json").read_bytes())["predicate"], "policy_name": "a better one"})
    sign(stamped, keys)  # by who has the key, even
    state, why = stage(stamped, "time stamp", trusting(authority))
    assert state == "fail" and "is over neither" in why
    assert not authority.confirms(stamped / STAMP_FILE, stamped / ENVELOPE_FILE)


def test_a_tampered_stamp_fails_both(stamped: Path, authority: Authority) -> None:
    path = stamped / STAMP_FILE
    data = bytearray(path.read_bytes())
    data[-9] ^= 1  # in the authority's signature
    path.write_bytes(bytes(data))
    problems = [p.what for p in verify(stamped, None, trusting(authority)).problems]
    assert any("not valid under the roots" in what or "is not a time stamp" in what for what in problems)
    assert "is not the time stamp that event 4 names" in problems
    assert not authority.confirms(path, stamped / ENVELOPE_FILE)


def test_a_removed_stamp_is_missed(stamped: Path) -> None:
    (stamped / STAMP_FILE).unlink()
    assert stage(stamped, "time stamp") == ("fail", "is missing; event 4 names a time stamp")


def test_an_authority_that_sends_a_byte_now_and_then_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read of its socket is in time; all of them together would never end."""
    ended = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            with suppress(OSError):
                while not ended.wait(0.05):
                    self.wfile.write(b"x")

    monkeypatch.setattr(timestamp, "SECONDS", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(RunStopped, match="no whole answer"):
            post(f"http://127.0.0.1:{server.server_port}", b"?")
        ended.set()
        server.shutdown()


def test_an_unsigned_run_is_stamped_over_its_statement(run: Path, authority: Authority) -> None:
    made = stamp_run(run, "http://test", ask=authority.answer)
    assert made.covers == "run.json" and stage(run, "time stamp", trusting(authority))[0] == "pass"
    assert authority.confirms(run / STAMP_FILE, run / "run.json")


def test_an_answer_about_something_else_is_refused(run: Path, authority: Authority) -> None:
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    asked = TimestampRequestBuilder().data(b"something else").hash_algorithm(HashAlgorithm.SHA256).nonce(nonce=True)
    old = authority.answer("", asked.build().as_bytes())
    with pytest.raises(RunStopped, match="not about this request"):
        stamp_run(run, "http://test", ask=lambda url, request: old)
    with pytest.raises(RunStopped, match="is not a time stamp"):
        stamp_run(run, "http://test", ask=lambda url, request: b"<html>no")
    assert not (run / STAMP_FILE).exists()


def test_an_untrusted_authority_writes_nothing(run: Path, authority: Authority, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "other")
    with pytest.raises(RunStopped, match="is not trusted"):
        stamp_run(run, "http://test", other.root.read_bytes(), ask=authority.answer)
    assert not (run / STAMP_FILE).exists()


def test_the_command_asks_over_http(signed: Path, authority: Authority) -> None:
    with authority.served() as url:
        done = call("stamp", signed, "--tsa", url, "--tsa-roots", authority.root, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["covers"] == ENVELOPE_FILE
    result = call("verify", signed, "--tsa-roots", authority.root, "--json")
    assert {one["name"]: one["state"] for one in json.loads(result.stdout)["stages"]}["time stamp"] == "pass"


def test_no_other_command_asks(run: Path) -> None:
    with pytest.raises(InputError, match="is not a URL"):
        post("file:///etc/passwd", b"")
    with pytest.raises(RunStopped, match="cannot be asked"):
        post("http://127.0.0.1:9", b"")
    result = call("stamp", run, "--tsa", "http://127.0.0.1:9")
    assert result.exit_code == 2 and "nothing was written" in result.output and not (run / STAMP_FILE).exists()


def test_roots_that_are_none_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "roots.pem").write_text("hello")
    (tmp_path / "empty.pem").write_text(" ")
    for name in ("roots.pem", "empty.pem"):
        for command in (("verify", run), ("stamp", run, "--tsa", "http://127.0.0.1:9")):
            result = call(*command, "--tsa-roots", tmp_path / name)
            assert result.exit_code == 2 and "holds no certificates" in result.output


def test_a_stamp_removed_with_its_event_is_missed_by_who_names_roots(stamped: Path, authority: Authority) -> None:
    (stamped / STAMP_FILE).unlink()
    redo_events(stamped, lambda events: [event for event in events if event["kind"] != "run.stamped"])
    assert stage(stamped, "time stamp")[0] == "skip"
    found = stage(stamped, "time stamp", trusting(authority))
    assert found == ("fail", "is missing: the run has no time stamp, or it was removed")


def test_roots_require_a_time_stamp(signed: Path, authority: Authority) -> None:
    result = call("verify", signed, "--tsa-roots", authority.root)
    assert result.exit_code == 1 and "run.tsr: is missing: the run has no time stamp" in result.output
    assert call("verify", signed).exit_code == 0


def test_a_time_stamp_holds_after_the_certificates_of_its_authority_have_ended(signed: Path, tmp_path: Path) -> None:
    """What was stamped while they were valid; openssl wants to be told the time. A stamp made afterwards holds for nobody."""
    short = Authority.make(tmp_path / "short")
    ends = datetime.now(UTC) + timedelta(seconds=6)
    short.end(ends)
    made = stamp_run(signed, "http://tsa", ask=short.answer)
    if made.time + timedelta(seconds=1) >= ends:
        pytest.skip("this machine was too slow to stamp in time")
    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds() + 1))
    trust = Trust(tsa_roots=short.root.read_bytes())
    assert stage(signed, "time stamp", trust)[0] == "pass"
    over = signed / "run.tsr", signed / "run.dsse.json"
    assert not short.confirms(*over) and short.confirms(*over, "-attime", int(made.time.timestamp()))
    stamp_run(signed, "http://tsa", ask=short.answer)
    assert stage(signed, "time stamp", trust)[0] == "fail"


def test_a_run_of_a_replaced_key_verifies_with_the_key_that_it_was_signed_with(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    state, what = stage(signed, "signature", trust_in(keys_in(tmp_path / "new")))
    assert state == "fail" and "keep and name the .pub" in what
    assert keys.folder is not None
    old = shutil.copy(keys.folder / "statement.pub", tmp_path / "old.pub")
    assert stage(signed, "signature", trust_in(Keys(), old))[0] == "pass"
