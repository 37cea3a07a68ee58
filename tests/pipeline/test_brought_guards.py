"""Guards that users bring take part in a run: a classifier, a question to a server, and the guard of prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guards.chat import BUDGET_FILE
from jobs.report import report_run
from jobs.run.folder import open_folder
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.preflight import preflight
from jobs.run.verdict import verify_run
from pipeline.audit.ledger import attempt_rows, sample_rows
from pipeline.audit.verifier import clearance_verify
from pipeline.config import GenerationConfig, GuardsConfig, ModelConfig, RunConfig
from pipeline.decide import decide
from pipeline.looking.beside import open_looker
from pipeline.model.families import load_model
from pipeline.moderate import Moderation
from pipeline.outcome import Outcome, Request, Verdict
from pipeline.policy import Policy
from pipeline.runtime import Runtime
from pipeline.settings import read_toml
from tests.guards.chat_server import MODEL, ChatServer
from tests.guards.onnx_files import write_onnx

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
    (base / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    with ChatServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_KEY", SECRET)
        (base / "policy.toml").write_text(POLICY.format(address=server.address, model=MODEL))
        policy = read_toml(Policy, base / "policy.toml")
        config = RunConfig(
            prompts="prompts.txt", model=ModelConfig(path=str(tiny_sd), dtype="float32"), policy="policy.toml",
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
    assert f"question:red 1+{MODEL}+" in ran.preflight.opened["guards"]


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
    assert found["version"].startswith(f"1+{MODEL}+")
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


def test_the_report_shows_them(ran: SimpleNamespace) -> None:
    page, numbers, _ = report_run(ran.folder)
    shown = {(row["guard"], row["category"]) for row in numbers["guards"]}
    assert {("classifier:colour", "classifier.colour"), ("question:red", "question.red")} <= shown
    assert "prompt.blocked.reject" in page.read_text(encoding="utf-8")


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


def looked_at(tiny_sd: Path, of: str, *, shown: float) -> list[list[str]]:
    """Categories of the guard's triggered findings, by attempt, of a request whose first picture is a copy."""
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
    loop.submit(Request(row_no=0, key="0", prompt="a red apple", seed=1))
    samples = [sample for _ in range(40) if loop.busy for sample in loop.step()]
    return [[f.category for f in attempt.findings if f.guard == "faithfulness"] for attempt in samples[0].attempts]


def test_steered_pictures_are_held_against_their_prompt(tiny_sd: Path) -> None:
    assert looked_at(tiny_sd, "steered", shown=0.9) == [[], ["caption.lost"]]


def test_all_pictures_may_be(tiny_sd: Path) -> None:
    assert looked_at(tiny_sd, "all", shown=0.9) == [["caption.lost"], ["caption.lost"]]
