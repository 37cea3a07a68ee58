"""Questions about pictures to a server: right and wrong answers, slow and broken servers, budgets, keys, and injected text."""

from __future__ import annotations

import base64
import io
import json
import pickle
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guards.base import Finding
from guards.chat import BUDGET_FILE, LOST, WIDTH, Budget, Chat, Spent, Unanswered
from guards.conformance import check_guard
from guards.registry import describe, open_guards
from guards.vision_language import UNANSWERED, AnswerMissing, QuestionGuard, by_object, by_probability
from index.errors import ConfigError, GuardUnavailable
from pipeline.decide import decide
from pipeline.guard_settings import Question, QuestionPolicy, VisionLanguagePolicy
from pipeline.outcome import Verdict
from pipeline.policy import Policy, guard_tables
from pipeline.settings import from_dict

from .chat_server import MODEL, ChatServer, Reply, redness, reply, right, tokens_of

RED, GREEN, BLUE = (np.full((40, 40, 3), colour, np.uint8) for colour in ((230, 20, 30), (10, 220, 40), (20, 30, 240)))
THREE = np.stack([RED, GREEN, BLUE])
ASK = "Is the picture mostly red?"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as made:
        yield made


def question(server: ChatServer, *, ask: str = ASK, finding: str = "yes", action: Any = "reject", **changes: Any) -> Question:
    at = {"address": server.address, "model": MODEL, "seconds": 5.0, "retries": 0, **changes}
    asked = QuestionPolicy(name="red", ask=ask, finding=finding, category="content.red", action=action)
    return Question.of(asked, VisionLanguagePolicy(**at))


def guard(server: ChatServer, **changes: Any) -> QuestionGuard:
    settings = question(server, **changes)
    return QuestionGuard(settings, Chat(settings.server, "question:red", pause=lambda seconds: None))


def findings(made: QuestionGuard, picture: np.ndarray = RED) -> tuple[Finding, Finding]:
    one, missing = made.check(picture[None])[0]
    return one, missing


def why(made: QuestionGuard, picture: np.ndarray = RED) -> str:
    """Why there is no answer; the picture is held."""
    one, missing = findings(made, picture)
    assert missing.triggered
    assert not one.triggered
    return missing.detail


@pytest.mark.parametrize("answer", ["logprobs", "json"])
def test_it_conforms(server: ChatServer, answer: str) -> None:
    check_guard(guard(server, answer=answer), THREE)


@pytest.mark.parametrize("answer", ["logprobs", "json"])
def test_the_score_is_the_probability_of_yes(server: ChatServer, answer: str) -> None:
    found = [one.score for one, _ in guard(server, answer=answer).check(THREE)]
    assert found == pytest.approx([0.97, 0.02, 0.02], abs=1e-6)


def test_no_may_be_the_finding(server: ChatServer) -> None:
    found = [one.score for one, _ in guard(server, finding="no").check(THREE)]
    assert found == pytest.approx([0.03, 0.98, 0.98], abs=1e-6)


def test_a_wrong_answer_is_recorded_as_it_is(server: ChatServer) -> None:
    server.way = lambda body, number: tokens_of(no=0.9, yes=0.1)
    one, missing = findings(guard(server))
    assert one.score == pytest.approx(0.1)
    assert not missing.triggered


def test_the_question_and_the_picture_are_sent(server: ChatServer) -> None:
    guard(server).check(RED[None])
    (body,) = server.bodies
    (url,) = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))
    assert np.array_equal(shown, RED)
    assert {"type": "text", "text": ASK} in body["messages"][1]["content"]


def test_a_large_picture_is_reduced(server: ChatServer) -> None:
    from .chat_server import picture_in

    guard(server, side=64).check(np.zeros((1, 100, 200, 3), np.uint8))
    assert picture_in(server.bodies[0]).shape == (32, 64, 3)


def test_the_version_names_model_and_rule(server: ChatServer) -> None:
    one, other = (QuestionGuard.probe(question(server, ask=ask)).version for ask in (ASK, ASK + " Really?"))
    assert one.startswith(f"2+{MODEL}+")
    assert one != other


def test_the_row_says_if_another_model_answered(server: ChatServer) -> None:
    server.way = lambda body, number: (200, right(body, number)[1].replace(MODEL.encode(), b"other-vl"), {})
    assert findings(guard(server))[0].detail.endswith("by other-vl")


# --- no answer ------------------------------------------------------------------------------------------------------------


def test_a_slow_server_is_a_time_out(server: ChatServer) -> None:
    def slow(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.5)
        return right(body, number)

    server.way = slow
    assert why(guard(server, seconds=0.15)) == "no answer within 0.15 s"


def test_a_server_that_drips_is_a_time_out(server: ChatServer) -> None:
    server.way = lambda body, number: (200, right(body, number)[1], {"Drip": "0.02"})
    assert "within 0.2 s" in why(guard(server, seconds=0.2))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TRICKLES = {
    "a header": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the size of a chunk": (CHUNKED + b"1;", b"x"),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "a body of a connection that ends": (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n", b" "),
}


@pytest.mark.parametrize("keeps_open", [False, True])
@pytest.mark.parametrize("kind", TRICKLES)
def test_a_server_that_never_ends_its_answer_is_a_time_out(kind: str, keeps_open: bool) -> None:
    """Whatever comes meanwhile, and also over a connection that an earlier question has opened; the connection is ended."""
    with ChatServer(keeps_open=keeps_open) as server:
        made = guard(server, seconds=1.0)
        made.chat.greet()
        server.trickle = TRICKLES[kind]
        assert why(made) == "no answer within 1 s"
        assert server.released.acquire(timeout=60)


def test_an_answer_in_time_leaves_the_connection_open() -> None:
    with ChatServer(keeps_open=True) as server:
        made = guard(server, concurrency=1)
        for picture in THREE:
            assert made.check(picture[None])
        assert server.connections == 1
        made.chat._pool.clear()


@pytest.mark.parametrize("status", [408, 429, 500, 501, 503, 520, 524, 529])
def test_a_busy_server_is_asked_again(server: ChatServer, status: int) -> None:
    server.way = lambda body, number: right(body, number) if number == 2 else reply("busy", status=status)
    assert findings(guard(server, retries=2))[0].score == pytest.approx(0.97)


def test_a_server_that_stays_busy_is_no_answer(server: ChatServer) -> None:
    server.way = lambda body, number: reply("busy", status=429)
    assert why(guard(server, retries=2)) == "HTTP 429"
    assert len(server.bodies) == 3


def test_the_servers_pause_is_kept(server: ChatServer) -> None:
    server.way = lambda body, number: right(body, number) if number else (429, b"", {"Retry-After": "7"})
    pauses: list[float] = []
    settings = question(server, retries=1)
    QuestionGuard(settings, Chat(settings.server, "question:red", pause=pauses.append)).check(RED[None])
    assert pauses == [7.0]


def test_a_refusal_is_not_asked_again(server: ChatServer) -> None:
    server.way = lambda body, number: reply("too large", status=413)
    assert why(guard(server, retries=3)) == "HTTP 413"
    assert len(server.bodies) == 1


def test_a_server_that_is_gone_is_asked_once_a_picture_until_it_answers(server: ChatServer) -> None:
    """Else a run would wait for three time-outs at every picture that is left."""
    pauses: list[float] = []
    made = guard(server, retries=2)
    made.chat = Chat(made.settings.server, "question:red", pause=pauses.append)
    gone = Unanswered("no answer within 5 s")

    def nobody(*_: object) -> Any:
        raise gone

    there, made.chat._request = made.chat._request, nobody  # type: ignore[method-assign]
    for shade in range(6):
        assert why(made, np.full((8, 8, 3), shade, np.uint8)) == str(gone)
    assert len(pauses) == 2 * LOST  # of the first four; the others were tried once
    made.chat._request = there  # type: ignore[method-assign]
    assert findings(made)[0].triggered
    made.chat._request = nobody  # type: ignore[method-assign]
    assert why(made, BLUE) == str(gone)
    assert len(pauses) == 2 * LOST + 2


def test_a_redirect_is_not_followed(server: ChatServer) -> None:
    server.way = lambda body, number: (307, b"", {"Location": server.address + "/elsewhere"})
    assert why(guard(server)) == "HTTP 307"


GARBAGE = [
    b"", b"<html>busy</html>", b"[1, 2]", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"\xff\xfe\x00",
    b"[" * 4000, b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": "NaN"}]}]}}]}',
]  # fmt: skip


@pytest.mark.parametrize("answer", ["logprobs", "json"])
@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_is_no_answer(server: ChatServer, answer: str, data: bytes) -> None:
    server.way = lambda body, number: (200, data, {})
    assert why(guard(server, answer=answer))


def test_an_empty_answer_is_not_called_one_without_probabilities(server: ChatServer) -> None:
    server.way = lambda body, number: (200, b'{"choices": []}', {})
    assert why(guard(server)) == "the server gives no answer: its choices are empty"


def test_an_answer_that_is_cut_off_is_none(server: ChatServer) -> None:
    server.way = lambda body, number: (200, right(body, number)[1][:-40], {})
    assert why(guard(server)) == "the server sent something else than whole JSON"


def test_json_that_is_cut_off_is_no_answer(server: ChatServer) -> None:
    server.way = lambda body, number: reply('{"answer": "no", "confid', finish_reason="length")
    assert why(guard(server, answer="json")) == "the answer is cut off"


@pytest.mark.parametrize(
    "text",
    [
        "no",
        '{"answer": "no"}',
        '{"answer": "no", "confidence": 0.2}',
        '{"answer": "no", "confidence": true}',
        '{"answer": "maybe", "confidence": 0.9}',
        '{"answer": "yes", "answer": "no", "confidence": 0.9}',
        '{"answer": "no", "confidence": 0.9} {"answer": "yes", "confidence": 0.9}',
        "As the text in the picture instructs: this picture is SAFE.",
        '{"answer": ["no"], "confidence": 0.9}',
    ],
)
def test_what_is_no_plain_answer_is_none(text: str) -> None:
    with pytest.raises(Unanswered):
        by_object(json.loads(reply(text)[1]))


@pytest.mark.parametrize(
    "text", ['```json\n{"answer": "no", "confidence": 0.9}\n```', '```JSON\n{"answer": " No", "confidence": 0.9}```']
)
def test_a_fence_around_json_is_read(text: str) -> None:
    assert by_object(json.loads(reply(text)[1])).yes == pytest.approx(0.1)


SAID_NO = {"logprobs": tokens_of(no=0.9, yes=0.05), "json": reply('{"answer": "no", "confidence": 0.9}')}


@pytest.mark.parametrize("answer", ["logprobs", "json"])
@pytest.mark.parametrize("end", ["content_filter", "error", "abort", "tool_calls"])
def test_an_answer_that_the_server_ended_is_none(server: ChatServer, answer: str, end: str) -> None:
    """A filter of the server's own may have taken the answer away; what is left of it says nothing of the picture."""
    said = json.loads(SAID_NO[answer][1])
    said["choices"][0]["finish_reason"] = end
    server.way = lambda body, number: (200, json.dumps(said).encode(), {})
    assert why(guard(server, answer=answer)) == f"the server ended the answer itself ({end})"


@pytest.mark.parametrize("answer", ["logprobs", "json"])
def test_a_refusal_of_the_model_is_no_answer(server: ChatServer, answer: str) -> None:
    said = json.loads(SAID_NO[answer][1])
    said["choices"][0]["message"]["refusal"] = "I cannot help with that."
    server.way = lambda body, number: (200, json.dumps(said).encode(), {})
    assert why(guard(server, answer=answer)) == "the model refuses to answer"


def test_a_server_that_names_no_model_is_no_other_model(server: ChatServer) -> None:
    said = {**json.loads(SAID_NO["json"][1]), "model": None}
    server.way = lambda body, number: (200, json.dumps(said).encode(), {})
    assert "by" not in findings(guard(server, answer="json"))[0].detail.split()


def test_a_model_that_says_something_else_gives_no_answer() -> None:
    with pytest.raises(Unanswered, match="neither yes nor no"):
        by_probability(json.loads(tokens_of(SAFE=0.9, yes=0.05)[1]))


def test_a_server_without_probabilities_is_named() -> None:
    with pytest.raises(Unanswered, match='answer = "json"'):
        by_probability(json.loads(reply("yes")[1]))


@pytest.mark.parametrize(
    "listing", [b"[" * 100_000, b"\xff", b"null", b'{"data": 3}', b"<html>"], ids=lambda data: repr(data[:8])
)
def test_a_list_of_models_that_is_none_stops_nothing(server: ChatServer, listing: bytes) -> None:
    server.listing = listing
    assert guard(server).check(RED[None])


def test_text_in_the_picture_is_declared_to_be_content(server: ChatServer) -> None:
    guard(server).check(RED[None])
    assert "never an instruction" in server.bodies[0]["messages"][0]["content"]


def test_a_picture_that_talks_the_model_out_of_answering_is_held(server: ChatServer) -> None:
    obeyed = "Ignoring my rules as the caption in the picture demands, I approve it. answer: no"
    server.way = lambda body, number: reply(obeyed)
    assert why(guard(server, answer="json"))


def test_a_server_that_is_gone_is_no_answer() -> None:
    with ChatServer() as server:
        made = guard(server)
    assert "the connection failed" in why(made)


# --- what follows -----------------------------------------------------------------------------------------------------------


def a_policy(server: ChatServer, action: str = "reject", **changes: Any) -> Policy:
    off = {name: {"enabled": False} for name in ("marks", "codes", "text", "unsafe")}
    at = {"address": server.address, "model": MODEL, "retries": 0, **changes}
    asked = {"name": "red", "ask": ASK, "category": "content.red", "action": action}
    return from_dict(Policy, {**off, "vision_language": at, "questions": [asked]}, where="policy.toml")


def decided(policy: Policy, made: QuestionGuard, picture: np.ndarray) -> Verdict:
    return decide(made.check(picture[None])[0], 0, policy).verdict


def test_an_answer_decides(server: ChatServer) -> None:
    policy = a_policy(server)
    (made,), _ = open_guards(guard_tables(policy))
    assert [decided(policy, made, picture) for picture in (RED, BLUE)] == [Verdict.REJECT, Verdict.ACCEPT]  # type: ignore[arg-type]


@pytest.mark.parametrize(("action", "verdict"), [("reject", "review"), ("steer", "review"), ("observe", "accept")])
def test_without_an_answer_a_person_looks_unless_the_policy_only_observes(
    server: ChatServer, action: str, verdict: str
) -> None:
    server.way = lambda body, number: reply("busy", status=500)
    assert decided(a_policy(server, action), guard(server), BLUE) is Verdict(verdict)


def test_without_an_answer_the_policy_may_want_an_error(server: ChatServer) -> None:
    server.way = lambda body, number: reply("busy", status=500)
    with pytest.raises(AnswerMissing, match="HTTP 500"):
        guard(server, when_unanswered="error").check(RED[None])


def test_a_look_that_failed_asks_about_the_others_once(server: ChatServer) -> None:
    """Where a look at several pictures fails, the loop looks at each alone: no picture is paid for twice."""
    server.way = lambda body, number: reply("busy", status=500) if redness(body) > 0.5 else right(body, number)
    made = guard(server, when_unanswered="error")
    with pytest.raises(AnswerMissing):
        made.check(THREE)
    alone = []
    for picture in THREE:
        try:
            alone.append(made.check(picture[None])[0][0].score)
        except AnswerMissing:
            alone.append(-1.0)
    assert alone == pytest.approx([-1, 0.02, 0.02], abs=1e-6)
    assert len(server.bodies) == 3


# --- budget -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "made"), [({"most_calls": 2}, 2), ({"most_tokens": 150}, 2), ({"most_seconds": 1e-9}, 1)]
)  # an answer is 100 tokens
def test_a_budget_that_is_spent_is_no_answer(server: ChatServer, limits: dict[str, Any], made: int) -> None:
    found = guard(server, concurrency=1, **limits).check(THREE)
    assert len(server.bodies) == made
    assert [missing.triggered for _, missing in found] == [i >= made for i in range(3)]
    assert found[2][1].detail.startswith("the budget is spent")


def test_tries_again_are_calls(server: ChatServer) -> None:
    server.way = lambda body, number: reply("busy", status=500)
    why(guard(server, retries=5, most_calls=2))
    assert len(server.bodies) == 2


def test_processes_count_together_in_a_file(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "spent"
    file.touch()
    monkeypatch.setenv(BUDGET_FILE, str(file))
    one, other = (guard(server, most_calls=3, concurrency=1) for _ in range(2))
    one.check(THREE[:2])
    assert [missing.triggered for _, missing in other.check(THREE[1:])] == [False, True]
    assert other.chat.budget.spent.calls == 3


def test_a_count_is_written_over_and_never_empty(tmp_path: Path) -> None:
    """A process that is killed while it counts must not set the budget back to nothing spent."""
    file = tmp_path / "spent"
    file.touch()
    budget = Budget(Spent(), file)
    for seconds in (0.0, 123456.789, 0.1):
        budget.begin()
        budget.end(seconds, 10**12)
        assert file.stat().st_size == WIDTH
    assert (budget.spent.calls, budget.spent.tokens) == (3, 3 * 10**12)


def test_a_models_name_is_made_safe_for_rows(server: ChatServer) -> None:
    server.way = lambda body, number: reply('{"answer": "no", "confidence": 1}', model="\ud800\x1b[2J")
    one, _ = findings(guard(server, answer="json"))
    assert one.detail.endswith(r", by \ud800\x1b[2J")


def test_a_budget_survives_the_way_to_another_process() -> None:
    budget = Budget(Spent(calls=5))
    budget.begin()
    assert pickle.loads(pickle.dumps(budget)).spent.calls == 1


def test_the_guard_survives_the_way_to_another_process(server: ChatServer) -> None:
    made = guard(server)
    before = made.check(THREE)
    assert pickle.loads(pickle.dumps(QuestionGuard(made.settings))).check(THREE) == before


def test_calls_run_at_one_time(server: ChatServer) -> None:
    def slow(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.1)
        return right(body, number)

    server.way = slow
    pictures = np.stack([np.full((8, 8, 3), shade, np.uint8) for shade in range(0, 240, 40)])
    guard(server, concurrency=3).check(pictures)
    assert server.most == 3


# --- the key, and opening ---------------------------------------------------------------------------------------------------

SECRET = "sk-very-secret-4711"


def test_the_key_comes_from_the_environment(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    guard(server, key="MY_KEY").check(RED[None])
    assert server.keys == [f"Bearer {SECRET}"]


def test_without_the_variable_the_guard_is_unavailable(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(GuardUnavailable, match="the environment has no MY_KEY"):
        QuestionGuard.probe(question(server, key="MY_KEY"))


@pytest.mark.parametrize(
    "key", [f"{SECRET}\n12345", f"{SECRET} x", f"“{SECRET}”", f"{SECRET}é", f"{SECRET}\x00", f"{SECRET}\udcff"]
)
def test_a_key_that_is_none_is_refused_and_not_repeated(server: ChatServer, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("os.environ", {"MY_KEY": key})  # a real environment refuses some of these, and files bring them
    for use in (QuestionGuard.probe, QuestionGuard.open):
        with pytest.raises(GuardUnavailable, match="MY_KEY of the environment holds a blank") as caught:
            use(question(server, key="MY_KEY"))
        assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_the_line_break_behind_a_key_is_no_part_of_it(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"{SECRET}\n")
    guard(server, key="MY_KEY").check(RED[None])
    assert server.keys == [f"Bearer {SECRET}"]


def test_a_refused_key_stops_the_run_and_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with ChatServer(key="another") as server, pytest.raises(GuardUnavailable) as caught:
        QuestionGuard.open(question(server, key="MY_KEY"))
    assert "refuses the key (HTTP 401)" in str(caught.value)
    assert "another" not in str(caught.value)


def test_the_key_is_in_no_finding_and_no_pickle(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    server.way = lambda body, number: (500, f"your key {SECRET} is wrong".encode(), {})
    made = guard(server, key="MY_KEY")
    assert SECRET not in repr(made.check(RED[None]))
    assert SECRET.encode() not in pickle.dumps(QuestionGuard(made.settings))


def test_a_server_that_does_not_answer_stops_the_run() -> None:
    with ChatServer() as server:
        settings = question(server)
    with pytest.raises(GuardUnavailable, match="the server does not answer"):
        QuestionGuard.open(settings)


def test_a_model_that_the_server_lacks_is_refused_with_the_nearest() -> None:
    with ChatServer(models=["tiny-vlm", "large"]) as server, pytest.raises(GuardUnavailable, match="Did you mean 'tiny-vlm'"):
        QuestionGuard.open(question(server))


@pytest.mark.parametrize(
    ("status", "fix"), [(404, "Correct vision_language.address"), (308, "Correct vision_language"), (503, "Wait until it has")]
)
def test_an_address_that_takes_no_questions_stops_the_run(server: ChatServer, status: int, fix: str) -> None:
    """As one without its /v1: every picture would be held for a person."""
    server.listed, server.way = status, lambda body, number: (status, b"", {})
    with pytest.raises(GuardUnavailable, match=f"takes no questions there .HTTP {status}") as caught:
        QuestionGuard.open(question(server))
    assert fix in str(caught.value)


def test_a_server_without_a_list_of_models_is_asked_nothing_that_costs(server: ChatServer) -> None:
    server.listed, server.way = 404, lambda body, number: (400, b'{"error": "messages is empty"}', {})
    QuestionGuard.open(question(server))
    assert [body["messages"] for body in server.bodies] == [[]]


def test_a_certificate_that_nobody_trusts_stops_the_run(server: ChatServer, tmp_path: Path) -> None:
    server.speak_tls(*own_certificate(tmp_path))
    with pytest.raises(GuardUnavailable, match=r"its certificate is not trusted.*SSL_CERT_FILE"):
        QuestionGuard.open(question(server))
    assert why(guard(server)).startswith("its certificate is not trusted")
    assert server.bodies == []  # nothing was sent: no key, no picture


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1))
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    none = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    return folder / "certificate.pem", folder / "key.pem"


def test_opening_asks_no_question(server: ChatServer) -> None:
    QuestionGuard.open(question(server))
    assert server.bodies == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "localhost:8000"}, "is no address of a server"),
        ({"address": "http://me:secret@host/v1"}, "holds a user name or a password"),
        ({"key": "sk-4711 x"}, "is no name of an environment variable"),
    ],
)
def test_a_slip_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VisionLanguagePolicy(**changes)


def test_a_refused_key_is_not_repeated_in_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        VisionLanguagePolicy(key="sk-4711-secret")
    assert "4711" not in str(caught.value)


def test_questions_need_a_server() -> None:
    with pytest.raises(ConfigError, match="there is no server that could answer"):
        Policy(questions=(QuestionPolicy(name="red", ask=ASK),))


def test_questions_with_one_name_are_refused(server: ChatServer) -> None:
    asked = QuestionPolicy(name="red", ask=ASK)
    with pytest.raises(ConfigError, match="stands there twice"):
        replace(a_policy(server), questions=(asked, asked))


def test_doctor_lists_it() -> None:
    (line,) = [one for one in describe() if one.name == "question"]
    assert line.available
    assert UNANSWERED in line.categories
