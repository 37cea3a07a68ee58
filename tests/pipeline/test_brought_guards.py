"""Guards that users bring take part in a run: a classifier, a question to a server, and the guard of prompts."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guards.chat import BUDGET_FILE
from guards.vision_language import UNANSWERED
from jobs.by import By
from jobs.export.write import export_run
from jobs.report import ReferencePictures, report_run
from jobs.retention import apply_retention, erase_keys
from jobs.review.export import _item
from jobs.review.queue import Waiting, rows_for
from jobs.run.folder import open_folder
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.preflight.dry_run import preflight
from jobs.run.verdict import verify_run
from jobs.show import lines as show_lines
from jobs.show import page_of, show_request
from pipeline.audit.erase import PROMPT
from pipeline.audit.events import append_event
from pipeline.audit.ledger import attempt_rows, sample_rows
from pipeline.audit.numbers import Counts
from pipeline.audit.summary import sentences
from pipeline.audit.verifier import clearance_verify
from pipeline.config import GenerationConfig, GuardsConfig, ModelConfig, RunConfig
from pipeline.decide import decide
from pipeline.looking.beside import open_looker
from pipeline.model.load import load_model
from pipeline.moderate import Moderation
from pipeline.outcome import Outcome, Request, Verdict
from pipeline.policy import Policy
from pipeline.runtime import Runtime
from pipeline.settings import read_toml
from tests.guards.chat_server import MODEL, ChatServer
from tests.guards.onnx_files import write_onnx
from tests.jobs.retained import stored_bytes

SECRET = "sk-very-secret-4711"
PROMPTS = ["a red apple", "a b.0.m.b in a field", "a cat in the style of Nobody", "draw Mickey on a sofa", "a knife"]
POLICY = """
[marks]
enabled = false
[codes]
enabled = false
[text]
enabled = false
[unsafe]
enabled = false

[[classifiers]]
name = "colour"
model = "classifier/model.onnx"
labels = ["red", "green"]
action = "observe"

[vision_language]
address = "{address}"
model = "{model}"
key = "MY_KEY"

[[questions]]
name = "red"
ask = "Is the picture mostly red?"
action = "observe"

[prompt]
enabled = true
titles = "off"

[[blocked]]
words = "bomb"

[[blocked]]
pattern = 'in the style of \\w+'
action = "review"

[[blocked]]
words = ["Mickey"]
action = "rewrite"
instead = "a mouse"
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Iterator[SimpleNamespace]:
    """A run of five prompts: folder, plan, server, and its rows by prompt."""
    import numpy as np

    base = tmp_path_factory.mktemp("project")
    write_onnx(base / "classifier", ["red", "green", "blue"], np.eye(3))
    rows: list[dict[str, str]] = [{"prompt": prompt} for prompt in PROMPTS]
    rows[0]["negative_prompt"] = "a bomb"
    (base / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ChatServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_KEY", SECRET)
        (base / "policy.toml").write_text(POLICY.format(address=server.address, model=MODEL))
        policy = read_toml(Policy, base / "policy.toml")
        config = RunConfig(
            prompts="prompts.jsonl", model=ModelConfig(path=str(tiny_sd), dtype="float32"), policy="policy.toml",
            generation=GenerationConfig(steps=2, rows=4), guards=GuardsConfig(workers=0),
        )  # fmt: skip
        plan = Plan.make(config, policy, base)
        found = preflight(plan, base / "run", "local", resume=False)
        folder, _ = open_folder(base / "run", plan)
        result = run_local(plan, folder)
        rows = {row["prompt"]: row for row in sample_rows(folder)}
        yield SimpleNamespace(
            base=base, config=config, policy=policy, plan=plan, preflight=found, folder=folder, result=result, server=server,
            rows=rows, attempts=list(attempt_rows(folder)),
        )  # fmt: skip


def findings(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["category"]: finding for finding in row["findings"]}


def test_the_dry_run_opens_them(ran: SimpleNamespace) -> None:
    assert ran.preflight.problems == []
    assert "classifier:colour 1+" in ran.preflight.opened["guards"]
    assert f"question:red 2+{MODEL}+" in ran.preflight.opened["guards"]


def test_every_request_ends_as_it_should(ran: SimpleNamespace) -> None:
    assert [ran.rows[prompt]["outcome"] for prompt in PROMPTS] == ["accepted", "rejected", "review", "accepted", "accepted"]


def test_a_rejected_prompt_costs_nothing(ran: SimpleNamespace) -> None:
    row = ran.rows[PROMPTS[1]]
    assert (row["reason"], row["denoiser_evals"], row["attempts"]) == ("prompt.blocked.reject", 0.0, 0)


def test_a_rejected_prompt_has_its_finding_in_the_row(ran: SimpleNamespace) -> None:
    found = findings(ran.rows[PROMPTS[1]])["prompt.blocked.reject"]
    assert (found["guard"], found["triggered"], found["action"], found["detail"]) == ("prompt", True, "reject", "bomb")


def test_a_prompt_for_review_is_drawn_and_held(ran: SimpleNamespace) -> None:
    row = ran.rows[PROMPTS[2]]
    assert (row["reason"], row["attempts"], row["image"]) == ("prompt.blocked.review", 1, None)


def test_a_rewritten_prompt_stands_beside_the_callers(ran: SimpleNamespace) -> None:
    row = ran.rows[PROMPTS[3]]
    assert (row["prompt"], row["drawn_prompt"]) == ("draw Mickey on a sofa", "draw a mouse on a sofa")


def test_the_negative_prompt_is_not_looked_at(ran: SimpleNamespace) -> None:
    row = ran.rows[PROMPTS[0]]
    assert (row["negative_prompt"], row["outcome"]) == ("a bomb", "accepted")
    assert not findings(row)["prompt.blocked.reject"]["triggered"]


def test_other_prompts_are_drawn_as_they_stand(ran: SimpleNamespace) -> None:
    assert ran.rows[PROMPTS[0]]["drawn_prompt"] is None


def test_what_is_drawn_is_the_rewritten_prompt(ran: SimpleNamespace, tiny_sd: Path) -> None:
    row = ran.rows[PROMPTS[3]]
    plain = Runtime(ran.config, Policy(), load_model(ran.config.model))
    loop = Moderation(plain)
    loop.submit(Request(row_no=0, key="0", prompt="draw a mouse on a sofa", seed=row["base_seed"]))
    samples = [sample for _ in range(9) if loop.busy for sample in loop.step()]
    assert samples[0].attempts[0].pixel_sha256 == row["pixel_sha256"]


def test_every_picture_has_findings_of_every_guard(ran: SimpleNamespace) -> None:
    guards = [sorted({f["guard"] for f in row["findings"]}) for row in ran.attempts]
    assert guards == [["classifier:colour", "prompt", "question:red"]] * 4


def test_rows_name_the_model_and_the_action(ran: SimpleNamespace) -> None:
    found = findings(ran.rows[PROMPTS[0]])["question.red"]
    assert found["version"].startswith(f"2+{MODEL}+")
    assert found["action"] == "observe"


def test_the_plan_binds_them(ran: SimpleNamespace) -> None:
    names = [guard["name"] for guard in ran.result.statement["predicate"]["guards"]]
    assert names == ["classifier:colour", "question:red", "prompt"]


def test_no_prompt_is_sent_to_the_server(ran: SimpleNamespace) -> None:
    sent = json.dumps(ran.server.bodies)
    assert ran.server.bodies
    assert not any(prompt in sent for prompt in PROMPTS)


def test_the_key_is_sent_and_in_no_file(ran: SimpleNamespace) -> None:
    assert set(ran.server.keys) == {f"Bearer {SECRET}"}
    assert not any(SECRET.encode() in path.read_bytes() for path in ran.base.rglob("*") if path.is_file())


def test_the_run_verifies(ran: SimpleNamespace) -> None:
    assert verify_run(ran.folder).problems == ()


def test_the_small_verifier_agrees(ran: SimpleNamespace) -> None:
    assert clearance_verify.main([str(ran.folder)]) == 0


def test_another_rewritten_prompt_does_not_match_its_commitment(ran: SimpleNamespace) -> None:
    from pipeline.audit.commitments import default_salt, drawn_commitment

    row, salt = ran.rows[PROMPTS[3]], default_salt("default")
    assert drawn_commitment(row["drawn_prompt"], salt) == row["drawn_commit"] != drawn_commitment("another", salt)


@pytest.fixture(scope="module")
def erased(ran: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A copy of the run: the prompt of the sample that was rewritten is erased, and what was in its place before."""
    folder = Path(shutil.copytree(ran.folder, tmp_path_factory.mktemp("erased") / "run"))
    before = stored_bytes(folder)
    row = ran.rows[PROMPTS[3]]
    made = erase_keys(folder, [row["request_key"]], [PROMPT], By(role="privacy", reason="request 31"))
    return SimpleNamespace(folder=folder, before=before, row=row, made=made)


def test_a_rewritten_prompt_is_erased_with_the_callers(erased: SimpleNamespace) -> None:
    assert erased.made.cells["drawn_prompt"] == 1
    (row,) = [row for row in sample_rows(erased.folder) if row["sample_id"] == erased.row["sample_id"]]
    assert (row["prompt"], row["drawn_prompt"], row["drawn_commit"]) == (None, None, erased.row["drawn_commit"])


def test_of_an_erased_rewritten_prompt_no_byte_is_left(erased: SimpleNamespace) -> None:
    assert b"a mouse on a sofa" in erased.before
    assert b"a mouse on a sofa" not in stored_bytes(erased.folder)


def test_a_run_verifies_after_a_rewritten_prompt_was_erased(erased: SimpleNamespace) -> None:
    assert verify_run(erased.folder).problems == ()
    assert clearance_verify.main([str(erased.folder)]) == 0


def test_the_end_of_retention_takes_rewritten_prompts_too(ran: SimpleNamespace, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ran.folder, tmp_path / "run"))
    row = ran.rows[PROMPTS[3]]
    decided = {"outcome": "accepted", "retain_until": (row["finished_at"] + timedelta(days=1)).isoformat()}
    append_event(folder, "review.decided", "reviewer", "fine", samples=[row["sample_id"]], details=decided)
    apply_retention(folder, By(role="privacy", reason="over"), clock=lambda: row["finished_at"] + timedelta(days=2))
    (after,) = [one for one in sample_rows(folder) if one["sample_id"] == row["sample_id"]]
    assert (after["prompt"], after["drawn_prompt"]) == (None, None)


@pytest.mark.parametrize("value", ["a rat on a sofa", None])
def test_a_rewritten_prompt_that_was_changed_is_a_problem(ran: SimpleNamespace, value: str | None) -> None:
    from pipeline.audit.commitments import default_salt, uncommitted

    row = ran.rows[PROMPTS[3]]
    assert list(uncommitted(row, default_salt("default"))) == []
    assert [column for column, _ in uncommitted(row | {"drawn_prompt": value}, default_salt("default"))] == ["drawn_prompt"]


def test_a_request_is_shown_with_the_prompt_that_was_drawn(ran: SimpleNamespace) -> None:
    shown = dict(show_lines(show_request(ran.folder, ran.rows[PROMPTS[3]]["request_key"]).entry))
    assert (shown["prompt"], shown["  drawn as"]) == ("draw Mickey on a sofa", "draw a mouse on a sofa")


def test_a_reviewer_sees_the_prompt_that_was_drawn(ran: SimpleNamespace) -> None:
    one = Waiting(sample_id=ran.rows[PROMPTS[3]]["sample_id"], born="accepted", outcome="accepted", purpose="audit")
    ((_, _, row),) = rows_for(ran.folder, [one])
    item = _item(one, row, None, lambda ref_id: None)
    assert (item["prompt"], item["drawn_prompt"]) == ("draw Mickey on a sofa", "draw a mouse on a sofa")


def test_an_export_has_both_prompts_and_captions_with_the_drawn_one(ran: SimpleNamespace, tmp_path: Path) -> None:
    export_run(ran.folder, tmp_path / "set", format="webdataset")
    name = ran.rows[PROMPTS[3]]["sample_id"]
    with tarfile.open(tmp_path / "set" / "data" / "00000.tar") as tar:
        caption, stated = (tar.extractfile(f"{name}.{suffix}").read() for suffix in ("txt", "json"))  # type: ignore[union-attr]
    assert caption == b"draw a mouse on a sofa"
    both = json.loads(stated)
    assert (both["prompt"], both["drawn_prompt"]) == ("draw Mickey on a sofa", "draw a mouse on a sofa")


def test_the_report_shows_them(ran: SimpleNamespace) -> None:
    page, numbers, _ = report_run(ran.folder)
    shown = {(row["guard"], row["category"]) for row in numbers["guards"]}
    assert {("classifier:colour", "classifier.colour"), ("question:red", "question.red")} <= shown
    assert "prompt.blocked.reject" in page.read_text(encoding="utf-8")


def test_a_prompt_that_was_not_drawn_counts_among_what_the_guard_fired_on(ran: SimpleNamespace) -> None:
    _, numbers, _ = report_run(ran.folder)
    (rate,) = [row["first"] for row in numbers["guards"] if row["category"] == "prompt.blocked.reject"]
    assert (rate["k"], rate["n"]) == (1, len(PROMPTS))


def shown(ran: SimpleNamespace, prompt: str) -> dict[str, str]:
    return dict(show_lines(show_request(ran.folder, ran.rows[prompt]["request_key"]).entry))


def test_what_rejected_a_prompt_is_shown(ran: SimpleNamespace) -> None:
    told = shown(ran, PROMPTS[1])
    assert told["  ! prompt"] == "prompt.blocked.reject  1.000 of 0.500  bomb" and "  with" not in told


def test_what_a_request_was_drawn_with_is_shown(ran: SimpleNamespace) -> None:
    assert shown(ran, PROMPTS[0])["  with"] == "ddim, 2 steps, guidance 3"


def test_the_page_of_a_request_shows_the_prompt_that_was_drawn(ran: SimpleNamespace) -> None:
    page = page_of(show_request(ran.folder, ran.rows[PROMPTS[3]]["request_key"]), ReferencePictures(ran.folder, ran.base))
    assert '<th scope="row">Drawn in its place</th><td>draw a mouse on a sofa<br>' in page


def test_the_plan_is_read_back(ran: SimpleNamespace) -> None:
    assert Plan.load(ran.folder).policy == ran.policy


def test_a_guard_process_opens_them(ran: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    looker = open_looker(ran.config, ran.policy, ran.base, load_model(ran.config.model).decoder)
    assert [guard.name for guard in looker.guards] == ["classifier:colour", "question:red"]


def test_what_questions_spend_is_counted_for_the_worker(ran: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.setenv(BUDGET_FILE, "")
    runtime = Runtime.open(ran.config, ran.policy, base=ran.base)
    (asked,) = [guard for guard in runtime.guards if guard.name == "question:red"]
    counted = asked.chat.budget.file  # type: ignore[attr-defined]
    assert counted is not None and counted.is_file()
    runtime.close()
    assert not counted.exists()


def test_a_prompt_on_which_a_pattern_takes_too_long_is_an_error(ran: SimpleNamespace) -> None:
    from guards.prompt import PromptGuard
    from pipeline.guard_settings import BlockedPolicy, PromptPolicy

    guard = PromptGuard.open(PromptPolicy(enabled=True), [BlockedPolicy(pattern="(a|aa)+$")])
    runtime = Runtime(ran.config, Policy(), load_model(ran.config.model))
    runtime.prompts = guard
    (sample,) = Moderation(runtime).submit(Request(row_no=0, key="0", prompt="a" * 60 + "!"))
    assert (sample.outcome, sample.reason) == (Outcome.ERROR, "error.prompt")


def test_an_action_that_nobody_knows_is_an_error() -> None:
    from guards.base import Finding

    found = Finding(guard="prompt", version="1", category="prompt.title.ignore", score=1.0, threshold=0.5)
    with pytest.raises(KeyError, match="ignore"):
        decide([found], 0, Policy())


def test_a_rewritten_prompt_is_not_decided_about_again(ran: SimpleNamespace) -> None:
    from guards.base import Finding

    found = Finding(guard="prompt", version="1", category="prompt.title.rewrite", score=1.0, threshold=0.5)
    assert decide([found], 0, ran.policy).verdict is Verdict.ACCEPT


# --- faithfulness in the loop ----------------------------------------------------------------------------------------------


class Texts:
    """An embedder to which the stand-in's pictures are as near as the test says; see :class:`tests.pipeline.loop.Copies`."""

    def texts(self, captions: list[str]) -> Any:
        import numpy as np

        return np.ones((len(captions), 4), np.float32) / 2


def looked_at(tiny_sd: Path, of: str, *, shown: float, mates: int = 0) -> list[list[str]]:
    """Categories of the guard's findings, by attempt, of a request whose first picture is a copy; ``mates``: of its group."""
    from dataclasses import replace

    from guards.faithfulness import FaithfulnessGuard, UsualRange
    from pipeline.guard_settings import FaithfulnessPolicy

    from .loop import POLICY, Copies, runtime

    seen: list[int] = []
    copies = Copies(lambda picture: not seen.append(1) and len(seen) == 1)  # type: ignore[func-returns-value]
    policy = replace(POLICY, faithfulness=FaithfulnessPolicy(enabled=True, of=of))  # type: ignore[arg-type]
    made = runtime(load_model(ModelConfig(path=str(tiny_sd), dtype="float32")), copies, policy=policy)
    made.faithfulness = FaithfulnessGuard(UsualRange(shown=shown, other=shown - 0.1), Texts())  # type: ignore[arg-type]
    loop = Moderation(made)
    group = {"group": "0-1", "group_size": 1 + mates} if mates else {}
    for n in range(1 + mates):
        loop.submit(Request(row_no=n, key=str(n), prompt="a red apple", seed=1 + n, member=n, **group))  # type: ignore[arg-type]
    samples = [sample for _ in range(40) if loop.busy for sample in loop.step()]
    steered = max(samples, key=lambda sample: len(sample.attempts))
    return [[f.category for f in attempt.findings if f.guard == "faithfulness"] for attempt in steered.attempts]


def test_steered_pictures_are_held_against_their_prompt(tiny_sd: Path) -> None:
    assert looked_at(tiny_sd, "steered", shown=0.9) == [[], ["caption.lost"]]


def test_pictures_of_a_group_are_too_because_their_mates_push_them(tiny_sd: Path) -> None:
    assert looked_at(tiny_sd, "steered", shown=0.9, mates=1) == [["caption.lost"], ["caption.lost"]]


def test_all_pictures_may_be(tiny_sd: Path) -> None:
    assert looked_at(tiny_sd, "all", shown=0.9) == [["caption.lost"], ["caption.lost"]]


@pytest.mark.parametrize("lost", [True, False])
def test_what_is_drawn_because_a_caption_was_lost_is_not_measured_by_the_loss(lost: bool) -> None:
    """Else the first picture, which has nothing of its prompt, would be the bar that every other one clears."""
    from types import SimpleNamespace as Some

    import numpy as np

    from guards.faithfulness import FaithfulnessGuard, UsualRange
    from pipeline.moderate import _faithfulness
    from pipeline.outcome import Intervention

    def near(cosine: float) -> Any:
        return (cosine * np.ones(4) / 2 + np.sqrt(1 - cosine**2) * np.array([1, -1, 0, 0]) / np.sqrt(2)).astype(np.float32)

    guard = FaithfulnessGuard(UsualRange(shown=0.5, other=0.0), Texts(), threshold=0.4 if lost else 0.95)  # type: ignore[arg-type]
    first = Some(embedding=near(0.1), intervention=None, findings=[guard.check("owl", near(0.1))], group="")
    assert first.findings[0].triggered is lost
    request = Some(attempts=[first], intervention=Intervention(kind="reseed"), steered=False, prompt="owl")
    runtime = Some(faithfulness=guard, policy=Some(faithfulness=Some(of="all")), adapters=Some(plain=str))
    (found,) = _faithfulness(runtime, request, Some(embedding=near(0.1)), Some(group=None))  # type: ignore[arg-type]
    assert found.triggered is lost and ("usual" in found.detail) is lost
    first.group = "owl#1-2"  # its mates pushed it: no bar for others
    (found,) = _faithfulness(runtime, request, Some(embedding=near(0.1)), Some(group=None))  # type: ignore[arg-type]
    assert "usual" in found.detail


def test_what_a_question_did_not_find_out_stands_beside_the_counts(ran: SimpleNamespace) -> None:
    """No answer, or one of another model than the policy names: who reads the counts sees it."""
    row = ran.rows[PROMPTS[0]]
    (asked, missing) = (findings(row)[category] for category in ("question.red", UNANSWERED))
    others = [finding for finding in row["findings"] if finding not in (asked, missing)]
    counts = Counts()
    counts.add(row, [])
    assert "questions" not in sentences(counts, None)
    counts.add({**row, "findings": [*others, asked, {**missing, "triggered": True}]}, [])
    counts.add({**row, "findings": [*others, missing, {**asked, "detail": "no, probability of yes 0.1, by other-vl"}]}, [])
    said = sentences(counts, None)["questions"]
    assert said.startswith("1 request has a last picture about which a question was not answered")
    assert "Questions about 1 picture were answered by 'other-vl'" in said
