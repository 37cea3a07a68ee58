"""A dry run opens what a run would open: where the run fails it fails, with the same words, and it writes nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from index.errors import ConfigError, RunStopped
from jobs.cli import main as cli
from jobs.keys import c2pa_test_chain, new_keys
from jobs.run.preflight.dry_run import check_room
from jobs.run.preflight.estimate import ROW_BYTES, Measured, estimate, free_memory, most_pictures, size
from jobs.run.preflight.notes import notes_of
from pipeline.audit.events import read_events
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.outcome import Request
from pipeline.policy import BlockedPolicy, Policy, UnsafePolicy
from pipeline.rungs import ReseedRung

POLICY = """
name = "small"
[marks]
enabled = false
[text]
enabled = false
[unsafe]
enabled = false
[[ladder]]
kind = "reseed"
[[ladder]]
kind = "reseed"
"""
RUN = """
prompts = "prompts.csv"
out = "run"
policy = "policy.toml"
{more}
[model]
path = "model"
dtype = "float32"
{model}
[generation]
steps = 3
rows = 4
"""


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "250"}).invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def project(tiny_sd: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_sd, tmp_path / "model")
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "prompts.csv").write_text("prompt;key;seed\na cat;a;7.0\na lemon;b;\n;c;\n" + "d cat " * 40 + ";d;\n")
    (tmp_path / "run.toml").write_text(RUN.format(more="", model=""))
    return tmp_path


def tree(folder: Path) -> dict[str, float]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def dry(project: Path, *more: str) -> tuple[Result, dict[str, Any]]:
    before = tree(project)
    result = call("run", project / "run.toml", "--dry-run", "--json", *more)
    assert tree(project) == before, "a dry run writes nothing"
    return result, json.loads(result.stdout) if result.stdout else {}


def test_what_a_good_run_takes(project: Path) -> None:
    result, found = dry(project)
    assert result.exit_code == 0, result.stderr
    assert found["ok"] and found["problems"] == []
    assert (found["requests"], found["to_draw"], found["shards"]) == (4, 3, 1)
    assert found["bad_rows"] == [{"key": "c", "code": "input.empty_prompt", "what": "line 4: the prompt is empty"}]
    assert found["opened"]["sampler"] == "ddim, 3 steps"
    assert found["opened"]["model"].startswith("StableDiffusionPipeline, 0.")
    measured, sums = found["measured"], found["estimate"]
    assert (measured["rows"], measured["width"], measured["height"]) == (4, 16, 16)
    assert sums["calls"] == 5  # 3 pictures of 3 steps and 2 rows, 4 rows a call
    assert sums["seconds"] == pytest.approx(5 * measured["call_seconds"] + 3 * measured["look_seconds"])
    assert sums["bytes"] == 3 * (measured["picture_bytes"] + ROW_BYTES)
    assert sums["times"] == 3
    assert {note["topic"] for note in found["notes"]} == {"prompts", "copies", "generation"}
    assert "1 of 4 prompts are longer than the text encoder takes: their ends are cut off" in result.stderr


def test_negative_prompts_that_have_no_effect_are_a_note(project: Path) -> None:
    (project / "prompts.csv").write_text("prompt,negative_prompt\na cat,a dog\na lemon,\n")
    assert "no effect" not in str(dry(project)[1]["notes"])
    (project / "run.toml").write_text(RUN.format(more="", model="") + "guidance_scale = 1.0\n")
    notes = {note["topic"]: note["text"] for note in dry(project)[1]["notes"]}
    assert notes["prompts"].startswith("1 of 2 rows have a negative prompt, which has no effect")


def test_a_guidance_scale_that_a_distilled_model_ignores_is_a_note(project: Path, tiny_model: Callable[[str], Path]) -> None:
    shutil.rmtree(project / "model")
    shutil.copytree(tiny_model("Flux2KleinPipeline"), project / "model")
    spoil(project / "model" / "model_index.json", lambda i: i | {"is_distilled": True})
    silent = RUN.format(more="", model="size = 16\ntext_tokens = 64")
    (project / "run.toml").write_text(silent + "guidance_scale = 3\n")
    _, found = dry(project)
    assert found["ok"], found["problems"]
    assert "generation.guidance_scale = 3 has no effect" in str(found["notes"])
    (project / "run.toml").write_text(silent)
    assert "has no effect" not in str(dry(project)[1]["notes"])


def test_more_bad_rows_than_the_run_may_have_are_a_problem(project: Path) -> None:
    (project / "prompts.csv").write_text("prompt;key\na cat;a\n" + "".join(f";b{i}\n" for i in range(12)))
    result = call("run", project / "run.toml", "--dry-run")
    assert result.exit_code == 2
    assert "12 of 13 requests are bad rows (92.3 %); max_error_rate allows 25 %, so the run would" in result.stderr
    assert result.stdout.count("the prompt is empty") == 10 and "  and 2 more bad rows; --json lists all" in result.stdout
    assert call("run", project / "run.toml", "--dry-run", "--max-error-rate", "1").exit_code == 0


def test_a_dry_run_tries_the_keys(project: Path) -> None:
    plain = dry(project)[1]
    new_keys(project / "keys")
    (project / "run.toml").write_text(RUN.format(more='marks = { keys = "keys", c2pa = "required" }', model=""))
    result, found = dry(project)
    assert result.exit_code == 0, result.stderr
    assert found["opened"]["C2PA"] == "signed by Clearance TEST signer, Clearance TEST"
    assert "a test certificate, nobody else trusts it" in result.stderr
    assert found["parts"]["marks.c2pa"] == "signed by a test certificate"
    assert 3_000 < found["measured"]["picture_bytes"] - plain["measured"]["picture_bytes"] < 5_000


@pytest.mark.parametrize("c2pa", ["auto", "required"])
def test_a_dry_run_refuses_an_ended_certificate(project: Path, c2pa: str) -> None:
    (project / "keys").mkdir()
    for name, data in c2pa_test_chain(days=1, now=datetime(2025, 3, 1, tzinfo=UTC)).items():
        (project / "keys" / name).write_bytes(data)
    (project / "run.toml").write_text(RUN.format(more=f'marks = {{ keys = "keys", c2pa = "{c2pa}" }}', model=""))
    result, found = dry(project)
    assert result.exit_code == 2 and not found["ok"]
    assert [problem["what"].split(" of ")[0] for problem in found["problems"]] == [
        "pictures cannot be signed: the C2PA certificate"
    ]


def test_workers_of_a_cluster_need_the_keys_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_keys(project / "keys")
    (project / "run.toml").write_text(RUN.format(more='marks = { keys = "keys" }', model=""))
    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere:10001")
    _, found = dry(project, "--runner", "ray")
    assert [note["text"] for note in found["notes"] if "every machine of the cluster needs" in note["text"]]


def test_a_cluster_that_nobody_reaches_is_refused_before_ray_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from index.errors import RunStopped
    from jobs.run.ray import cluster
    from jobs.run.ray.placement import Need

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(cluster, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with pytest.raises(RunStopped, match="nothing answers there") as refused, cluster.cluster(Need(cpus=1, gpus=0)):
        pass
    assert refused.value.where == "RAY_ADDRESS=127.0.0.1:1"


def test_the_lines_keep_their_names(project: Path) -> None:
    shown = call("run", project / "run.toml", "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    rows = [line.split(maxsplit=1) for line in shown.stdout.splitlines() if line.strip()]
    values = {name: rest for name, *more in rows for rest in more}
    assert values["requests"].strip() == "4 in 1 shard" and values["policy"].startswith("small 1; ladder of 2 rungs")
    assert "if nothing is steered; the ladders allow up to 3 times as much" in values["time"]
    assert values["measured"].startswith("a denoiser call of 4 rows") and "5 calls, all of them full" in values["measured"]
    assert values["binds"].startswith("config, policy, requests, ")
    assert shown.stdout.rstrip().endswith("dry run: nothing was drawn and nothing was written")


def test_the_measured_call_is_near_what_the_run_takes(project: Path) -> None:
    _, found = dry(project)
    done = call("run", project / "run.toml", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) and "note: prompts: the fields of prompts.csv are separated by semicolons" in done.stderr
    stored = sum(path.stat().st_size for path in (project / "run").rglob("samples/*.parquet"))
    assert stored <= found["estimate"]["bytes"] + 100_000  # the tables' own headers


def spoil(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def unsupported(project: Path) -> str:
    spoil(project / "model" / "model_index.json", lambda i: i | {"_class_name": ["my_pipe", "MyPipe"]})
    return "a pipeline with code of its own, which is never run"


def no_weights(project: Path) -> str:
    (project / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return "holds no weights"


def cut_short(project: Path) -> str:
    path = project / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "may be cut short"


def another_shape(project: Path) -> str:
    spoil(project / "model" / "unet" / "config.json", lambda c: c | {"cross_attention_dim": 48})
    return "config.json needs"


def no_such_device(project: Path) -> str:
    (project / "run.toml").write_text(RUN.format(more="", model='device = "gpu"'))
    return 'Did you mean "cuda"?'


def no_cuda(project: Path) -> str:
    (project / "run.toml").write_text(RUN.format(more="", model='device = "cuda:99"'))
    return "This machine has cpu"


def no_such_index(project: Path) -> str:
    (project / "run.toml").write_text(RUN.format(more='index = "refs"', model=""))
    return "refs"


def no_such_adapter(project: Path) -> str:
    (project / "run.toml").write_text(RUN.format(more="", model="") + '[[adapters]]\npath = "eraser"\n')
    return "eraser"


def foreign_folder(project: Path) -> str:
    (project / "run").mkdir()
    (project / "run" / "thesis.doc").write_text("x")
    return "is not a run folder and not empty"


def file_in_the_way(project: Path) -> str:
    (project / "run").write_text("x")
    return str(project / "run")


def link_to_nowhere(project: Path) -> str:
    (project / "run").symlink_to(project / "gone")
    return str(project / "run")


def file_above(project: Path) -> str:
    (project / "file").write_text("x")
    (project / "run.toml").write_text(RUN.format(more="", model="").replace('out = "run"', 'out = "file/run"'))
    return str(project / "file")


def too_many_rows(project: Path) -> str:
    (project / "policy.toml").write_text(POLICY + '[[ladder]]\nkind = "negtome"\nreferences = 9\n')
    return "rows"


def schedule(project: Path) -> str:
    spoil(project / "model" / "scheduler" / "scheduler_config.json", lambda c: c | {"thresholding": True})
    return "dynamic thresholding"


FAILURES = [
    unsupported, no_weights, cut_short, another_shape, no_such_device, no_such_index, no_such_adapter, foreign_folder,
    file_in_the_way, link_to_nowhere, file_above, schedule,
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_it_fails_where_the_run_fails_with_the_same_words(project: Path, failure: Callable[[Path], str]) -> None:
    words = failure(project)
    result, _ = dry(project)
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    real = call("run", project / "run.toml")
    assert real.exit_code == 2 and words in real.stderr, real.stderr


@pytest.fixture
def with_index(project: Path) -> Path:
    (project / "works").mkdir()
    for number, colour in enumerate(((200, 30, 30), (20, 90, 200))):
        Image.new("RGB", (64, 64), colour).save(project / "works" / f"{number}.png")
    built = call("index", "build", project / "works", "--out", project / "refs")
    assert built.exit_code == 0, built.output
    (project / "policy.toml").write_text(POLICY + "[copies]\nthreshold = 0.9\n")
    (project / "run.toml").write_text(RUN.format(more='index = "refs"', model=""))
    return project


def test_index_and_embedder_are_opened(with_index: Path) -> None:
    result, found = dry(with_index)
    assert result.exit_code == 0, result.stderr
    assert found["opened"]["index"] == "2 references; a copy from similarity 0.900 on, set by the policy"
    copies = [note["text"] for note in found["notes"] if note["topic"] == "copies"]
    assert len(copies) == 1 and "the index keeps no picture of 2 of 2 references" in copies[0]
    (with_index / "policy.toml").write_text(POLICY + '[copies]\nthreshold = 0.9\nedits = ["negative"]\n')
    assert dry(with_index)[1]["opened"]["index"].endswith("on, set by the policy; undoes edits: negative")


def test_an_embedder_that_is_not_there_fails_the_dry_run_too(with_index: Path) -> None:
    (with_index / "run.toml").write_text((with_index / "run.toml").read_text() + '[embedder]\nmodel = "local-dir:gone"\n')
    result, _ = dry(with_index)
    assert result.exit_code == 2 and "gone" in result.stderr
    real = call("run", with_index / "run.toml")
    assert real.exit_code == 2 and "gone" in real.stderr


def test_a_required_guard_that_is_not_there_fails_the_dry_run_too(project: Path) -> None:
    if importlib.util.find_spec("ultralytics") is not None:
        pytest.skip("the guard is installed")
    (project / "policy.toml").write_text(POLICY + "[yolo]\nenabled = true\n")
    result, found = dry(project)
    assert result.exit_code == 2 and [p["where"] for p in found["problems"]] == ["guard yolo"]
    (project / "policy.toml").write_text(POLICY + "[yolo]\nenabled = true\nrequired = false\n")
    result, found = dry(project)
    assert result.exit_code == 0 and "left out: yolo" in result.stderr


def test_weights_that_are_not_numbers_fail_the_dry_run(project: Path) -> None:
    path = project / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"] = np.full_like(tensors["conv_in.bias"], np.nan)
    save_file(tensors, path)
    result, found = dry(project)
    assert result.exit_code == 2
    assert [p["what"] for p in found["problems"]] == ["the denoiser's output is not finite in float32"]


def test_a_network_that_cannot_be_called_fails_the_dry_run(project: Path) -> None:
    spoil(project / "model" / "unet" / "config.json", lambda c: c | {"freq_shift": "x"})
    result, found = dry(project)
    assert result.exit_code == 2
    assert [p["what"][:42] for p in found["problems"]] == ["the denoiser cannot be called: TypeError: "]


def test_all_problems_are_found_at_once(project: Path) -> None:
    no_weights(project), no_such_device(project), foreign_folder(project)
    result, found = dry(project)
    assert result.exit_code == 2
    assert [problem["where"] for problem in found["problems"]] == [
        str(project / "run"), "model.device", str(project / "model" / "unet"),
    ]  # fmt: skip
    assert found["unmeasured"] == "the problems come first" and found["estimate"] is None
    assert all(problem["fix"] for problem in found["problems"])


def test_a_device_of_other_machines_is_a_note_for_ray(project: Path) -> None:
    no_cuda(project)
    (project / "run.toml").write_text((project / "run.toml").read_text().replace("cuda:99", "mps"))
    assert dry(project)[0].exit_code == 2
    result, found = dry(project, "--runner", "ray")
    assert result.exit_code == 0
    assert found["unmeasured"] == "this machine has no mps; the workers need one"
    assert any("the Ray workers need machines that have it" in note["text"] for note in found["notes"])


def test_a_run_that_stopped_counts_what_is_left(project: Path) -> None:
    (project / "run.toml").write_text(RUN.format(more="shard_size = 2", model=""))
    assert call("run", project / "run.toml").exit_code == 0
    shutil.rmtree(project / "run" / "run.json", ignore_errors=True)
    refused, _ = dry(project)
    assert refused.exit_code == 2 and "--resume" in refused.stderr
    result, found = dry(project, "--resume")
    assert result.exit_code == 0 and found["to_draw"] == 0
    assert "with 0 requests still to be drawn" in found["opened"]["folder"]


def test_the_notes_of_a_run_stay_with_it(project: Path) -> None:
    assert call("run", project / "run.toml").exit_code == 0
    noted = [event["reason"] for event in read_events(project / "run") if event["kind"] == "run.noted"]
    assert noted[0] == "prompts: the fields of prompts.csv are separated by semicolons"
    assert any(text.startswith("copies: the run file names no index") for text in noted)
    assert call("verify", project / "run").exit_code == 0


# --- notes -----------------------------------------------------------------------------------------------------------------


def texts(project: Path, policy: Policy) -> dict[str, str]:
    config = RunConfig(prompts="p.csv", model=ModelConfig(path=str(project / "model"), dtype="float32"))
    return {note.topic: note.text for note in notes_of(config, policy, project)}


def test_substitutions_are_notes(project: Path) -> None:
    spoil(project / "model" / "model_index.json", lambda i: i | {"safety_checker": ["stable_diffusion", "Checker"]})
    spoil(project / "model" / "scheduler" / "scheduler_config.json", lambda c: c | {"_class_name": "PNDMScheduler"})
    off = texts(project, Policy(unsafe=UnsafePolicy(enabled=False)))
    assert off["scheduler"].startswith("the model's folder names PNDMScheduler, which Clearance does not have; 'ddim'")
    assert off["safety checker"] == (
        "the folder's safety checker is not loaded; Clearance's own guard for unsafe content is off "
        "(unsafe.enabled in the policy)"
    )
    on = texts(project, Policy(unsafe=UnsafePolicy(action="reject")))["safety checker"]
    assert on.endswith("is on, with action reject") or "is not available here" in on
    assert off["copies"].startswith("the run file names no index")


def test_rules_that_nothing_looks_for_are_a_note(project: Path) -> None:
    blocked = Policy(name="own", blocked=(BlockedPolicy(words=("napalm",)),), ladder=(ReseedRung(),))
    assert texts(project, blocked)["policy"] == "there is [[blocked]], and prompt.enabled = false: no prompt is looked at"


def test_a_scheduler_that_is_not_here_is_refused_in_the_dry_run(project: Path) -> None:
    spoil(project / "model" / "scheduler" / "scheduler_config.json", lambda c: c | {"_class_name": "DEISMultistepScheduler"})
    with pytest.raises(ConfigError, match=r'generation\.scheduler: .*Set it to "dpmpp_2m"'):
        texts(project, Policy())


def test_a_scheduler_that_was_chosen_is_no_note(project: Path) -> None:
    spoil(project / "model" / "scheduler" / "scheduler_config.json", lambda c: c | {"_class_name": "DEISMultistepScheduler"})
    model = ModelConfig(path=str(project / "model"), dtype="float32")
    chosen = RunConfig(prompts="p.csv", model=model, generation=GenerationConfig(scheduler="euler"))
    assert "scheduler" not in {note.topic for note in notes_of(chosen, Policy(), project)}


# --- the sums --------------------------------------------------------------------------------------------------------------

CALL = Measured(
    call_seconds=2.0, rows=16, look_seconds=0.5, picture_bytes=1000, width=64, height=64, memory_bytes=1
)  # fmt: skip


def requests(count: int, bad: int = 0) -> list[Request]:
    good = [Request(row_no=i, key=f"k{i}", prompt="a cat", negative_prompt="", seed=i) for i in range(count)]
    return good + [
        Request(row_no=count + i, key=f"b{i}", prompt="", negative_prompt="", seed=0, problem=("input.empty_prompt", "x"))
        for i in range(bad)
    ]


@pytest.mark.parametrize(
    ("count", "guided", "until", "workers", "calls"),
    [
        (8, True, 1.0, 1, 20), (800, True, 1.0, 1, 2000), (800, False, 1.0, 1, 1000), (800, True, 0.5, 1, 1500),
        (800, True, 1.0, 4, 500), (1, True, 1.0, 1, 20), (0, True, 1.0, 1, 0), (3, True, 1.0, 4, 20),
    ],
)  # fmt: skip
def test_calls_of_a_run(count: int, guided: bool, until: float, workers: int, calls: int) -> None:
    config = RunConfig(prompts="p.csv", generation=GenerationConfig(steps=20, rows=16, guidance_until=until))
    sums = estimate(CALL, config, Policy(), requests(count, bad=5), guides=lambda scale, steps: guided, workers=workers)
    assert sums.calls == calls
    assert sums.seconds == calls * 2.0 + -(-count // workers) * 0.5
    assert sums.bytes == count * (1000 + ROW_BYTES)


def test_pictures_that_the_ladders_allow() -> None:
    assert most_pictures(Policy()) == 1
    assert most_pictures(replace(Policy(), ladder=(ReseedRung(), ReseedRung()), mark_ladder=(ReseedRung(),))) == 4


def test_room_on_the_disk(tmp_path: Path) -> None:
    check_room(10, 10, tmp_path)
    with pytest.raises(RunStopped, match=r"up to 2 GiB are needed, and 1 GiB are free"):
        check_room(2 * 2**30, 2**30, tmp_path)


def test_sizes_are_written_in_binary_units() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1536, 5 * 2**20, 2**40)] == [
        "0 bytes", "1023 bytes", "1 KiB", "1.5 KiB", "5 MiB", "1 TiB",
    ]  # fmt: skip


def test_free_memory_is_less_than_there_is() -> None:
    import os

    assert 0 < free_memory("cpu") <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ('scheduler = "ddim"', "turbo is drawn with 'euler_a', not 'ddim'"),
        ("guidance_scale = 7.5", "turbo is drawn with a guidance of at most 1, not 7.5"),
        ("steps = 20", "turbo is drawn in 1 to 4 steps, not 20"),
    ],
)
def test_a_key_against_the_preset_is_the_one_that_was_written(project: Path, keys: str, what: str) -> None:
    text = RUN.format(more="", model="").replace("steps = 3", f'preset = "turbo"\n{keys}')
    (project / "run.toml").write_text(text)
    result, found = dry(project)
    assert result.exit_code == 2
    assert [problem["what"].split(":")[0] for problem in found["problems"]] == [what]
