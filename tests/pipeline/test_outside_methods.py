"""A steering method of another package: it takes its part in a ladder, and no file of the product is touched for it."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from index.errors import ConfigError, IntegrityError
from jobs.run.folder import open_folder
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.policy_rows import ladders
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.fields import keys
from pipeline.methods import SHIPPED, answer_of, known_kinds, register, versions
from pipeline.model.interface import DiffusionModel
from pipeline.moderate import moderate
from pipeline.outcome import Intervention, Outcome
from pipeline.policy import CodesPolicy, MarksPolicy, Policy, TextPolicy, UnsafePolicy
from pipeline.rungs import METHODS, NudgeRung, SteeringMethod
from pipeline.settings import digest, from_dict, read_toml

from .loop import REF, Copies, by_key, requests, runtime, sha, undisturbed

TOY = '''
from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.fields import choice, number
from pipeline.outcome import Intervention
from pipeline.respond.copies import Failed, NextTry, Tools, reseed, resumed
from pipeline.rungs import KIND, Resumed, SteeringMethod
from pipeline.settings import settings


@settings
class LiftRung(Resumed):
    """Every predicted latent is lifted by a constant."""

    kind: Literal["lift"] = choice("lift", KIND)
    height: float = number(0.5, 0, 10, "what is added")


def fresh(failed, tools):
    return reseed(failed, None, tools).trajectory


def answer(failed: Failed, rung: LiftRung, tools: Tools) -> NextTry:
    failed, again, until = resumed(failed, rung, tools)
    again.nudge = lambda clean, step, noise=None: clean + rung.height if step < until else clean
    done = Intervention(kind="lift", strength=rung.height, ref_ids=failed.nearest(rung.references)[0])
    return NextTry(again, done, failed.seed)


METHOD = SteeringMethod(rung=LiftRung, answer=answer)
'''
QUIET = {  # guards that take long to open
    "marks": MarksPolicy(enabled=False),
    "text": TextPolicy(enabled=False),
    "unsafe": UnsafePolicy(enabled=False),
    "codes": CodesPolicy(enabled=False),
}
Install = Callable[..., None]


def source(kind: str) -> str:
    """The toy under another kind: what a policy has once named stays imported."""
    return TOY.replace('"lift"', f'"{kind}"')


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a module with a method beside the product: the module and what a package manager writes about it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def package(kind: str, text: str = "", *, module: str = "", entry: str = "") -> None:
        module = module or f"toy_{kind}"
        (site / f"{module}.py").write_text(text or source(kind), encoding="utf-8")
        about = site / f"{module}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        (about / "entry_points.txt").write_text(f"[clearance.steering]\n{entry or kind} = {module}:METHOD\n", encoding="utf-8")
        importlib.invalidate_caches()

    return package


def policy_of(*rungs: dict[str, object]) -> Policy:
    return from_dict(Policy, {"ladder": list(rungs)}, where="policy.toml")


def test_it_steers_in_a_ladder(install: Install, model: DiffusionModel, tmp_path: Path) -> None:
    install("lift")
    (tmp_path / "policy.toml").write_text('[[ladder]]\nkind = "lift"\nheight = 0.75\n[[ladder]]\nkind = "reseed"\n')
    policy = read_toml(Policy, tmp_path / "policy.toml")
    flagged = undisturbed(model)["key-1"]
    copies = Copies(lambda picture: sha(picture) == flagged)
    done = by_key(list(moderate(runtime(model, copies, policy=policy), requests(3))))["key-1"]
    first, second = done.attempts
    assert done.outcome is Outcome.ACCEPTED_AFTER_STEERING
    assert first.pixel_sha256 == flagged != second.pixel_sha256
    assert second.intervention == Intervention(kind="lift", strength=0.75, ref_ids=(REF,))


@pytest.mark.parametrize(
    ("kind", "ending", "message"),
    [
        ("raises", "raise RuntimeError('no idea')", "no idea"),
        ("forgets", "return None", "it answers None and no NextTry"),
        ("leaves", "raise SystemExit(0)", "it wants to end the process (0)"),
        ("stays", "return NextTry(failed.last, Intervention(kind='stays'), 1)", "which has no step to take"),
        ("seeds", "return NextTry(fresh(failed, tools), Intervention(kind='seeds'), 'abc')", "the seed 'abc'"),
        ("sinks", "return NextTry(fresh(failed, tools), Intervention(kind='sinks'), -5)", "the seed -5"),
        ("poses", "return NextTry(fresh(failed, tools), Intervention(kind='nudge'), 1)", "which is of another kind"),
        ("nans", "return NextTry(fresh(failed, tools), Intervention(kind='nans', strength=float('nan')), 1)", "strength nan"),
        ("names", "return NextTry(fresh(failed, tools), Intervention(kind='names', ref_ids=('zz',)), 1)", "reference 'zz'"),
    ],
)
def test_an_answer_that_fails_ends_its_own_sample_alone(
    install: Install, model: DiffusionModel, kind: str, ending: str, message: str
) -> None:
    begin = "    failed, again, until = resumed"
    install(kind, source(kind).replace(begin, f"    {ending}\n{begin}"))
    pictures = undisturbed(model)
    copies = Copies(lambda picture: sha(picture) == pictures["key-1"])
    done = by_key(list(moderate(runtime(model, copies, policy=policy_of({"kind": kind})), requests(3))))
    assert (done["key-1"].outcome, done["key-1"].reason) == (Outcome.ERROR, "error.steering")
    assert message in done["key-1"].error_message
    assert done["key-0"].attempts[0].pixel_sha256 == pictures["key-0"]


def plan_with(kind: str, folder: Path, model: Path) -> Plan:
    """A plan of one request whose ladder has one rung of this kind."""
    (folder / "prompts.csv").write_text("prompt\nred apple\n")
    config = RunConfig(
        prompts="prompts.csv",
        model=ModelConfig(path=str(model), dtype="float32"),
        generation=GenerationConfig(steps=2, rows=4),
    )
    return Plan.make(config, replace(policy_of({"kind": kind, "height": 0.25}), **QUIET), folder)


def test_a_plan_binds_the_packages_version(install: Install, tmp_path: Path, tiny_sd: Path) -> None:
    install("raised")
    assert plan_with("raised", tmp_path, tiny_sd).identity["steering.raised"] == "toy_raised 1.0"


def test_its_run_is_verified_without_the_package(install: Install, tmp_path: Path, tiny_sd: Path) -> None:
    install("gone")
    plan = plan_with("gone", tmp_path, tiny_sd)
    folder, _ = open_folder(tmp_path / "run", plan)
    run_local(plan, folder)
    code = (  # in a process that does not see the package
        f"from pathlib import Path\nfrom jobs.run.verdict import verify_run\nfound = verify_run(Path({str(folder)!r}))\n"
        "print(found.ok, found.problems)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "True ()\n"


def test_a_changed_key_of_it_in_a_stored_plan_is_found(install: Install, tmp_path: Path, tiny_sd: Path) -> None:
    install("altered")
    folder, _ = open_folder(tmp_path / "run", plan_with("altered", tmp_path, tiny_sd))
    path = folder / "plan.json"
    path.write_text(path.read_text().replace('"height": 0.25', '"height": 0.75'))
    with pytest.raises(IntegrityError, match="does not match its digest"):
        Plan.load(folder)


def test_a_ladder_of_methods_that_ship_binds_no_package(install: Install) -> None:
    install("unused")
    assert versions({"nudge", "reseed"}) == {}


def test_a_policy_with_it_is_pickled_for_a_worker(install: Install) -> None:
    install("carried")
    policy = policy_of({"kind": "carried", "height": 0.25})
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_it_has_a_digest_of_its_own(install: Install) -> None:
    install("bound")
    low, high = (policy_of({"kind": "bound", "height": height}) for height in (0.25, 0.5))
    assert digest(low) != digest(high)


def test_it_is_imported_only_where_a_policy_names_it(install: Install) -> None:
    install("asleep", "raise RuntimeError('imported')\n")
    policy_of({"kind": "nudge"})
    assert "asleep" in known_kinds()
    assert "toy_asleep" not in sys.modules


def test_the_report_shows_all_its_keys(install: Install) -> None:
    install("shown")
    ((_, [(kind, settings)]),) = ladders(asdict(policy_of({"kind": "shown", "height": 0.25})))
    assert kind == "shown"
    assert settings.endswith("height = 0.25")


def test_the_reference_names_the_methods_that_ship_alone(install: Install) -> None:
    install("unlisted")
    policy_of({"kind": "unlisted"})
    assert {key.loc[2] for key in keys(Policy) if key.loc[:1] == ("ladder",) and key.shape == "kind"} == set(SHIPPED)


@pytest.mark.parametrize(
    ("rung", "what", "fix"),
    [
        ({"kind": "hoits"}, "'hoits' is not allowed", "Did you mean 'hoist'?"),
        ({"kind": "hoist", "heigth": 1.0}, "unknown key 'heigth'", "Did you mean 'height'?"),
        ({"kind": "hoist", "height": 50.0}, "must be from 0 to 10, not 50", "Did you mean 0.5?"),
        ({"kind": "hoist", "alpha": 1.0}, "'alpha' means nothing to kind 'hoist'", "Leave it out; this kind knows height,"),
        ({"kind": "hoist", "renew": True, "resume_fraction": 0.5}, "renew starts from new noise", "Remove resume_fraction"),
    ],
    ids=str,
)
def test_a_slip_in_its_keys_is_named(install: Install, rung: dict[str, object], what: str, fix: str) -> None:
    install("hoist")
    with pytest.raises(ConfigError) as caught:
        policy_of(rung)
    assert caught.value.what.startswith(what)
    assert caught.value.fix.startswith(fix)
    assert caught.value.where.startswith("policy.toml: ladder no. 1: ")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("broken", ("from typing", "from a_package_that_is_not_here"), "toy_broken:METHOD of toy_broken cannot be imported"),
        ("bare", ("SteeringMethod(rung=LiftRung, answer=answer)", "LiftRung"), "is no SteeringMethod but a type"),
        (
            "other",
            ('choice("other", KIND)', 'choice("lift", KIND)'),
            "whose key `kind` is not Literal\\['other'\\] with that default",
        ),
        ("loose", ('number(0.5, 0, 10, "what is added")', "0.5"), "key 'height' has no range"),
        ("mute", ("answer=answer", "answer=3"), "has an answer that is not a function"),
        (
            "open",
            ("@settings\nclass LiftRung(Resumed):", "@dataclass(frozen=True, kw_only=True)\nclass LiftRung:"),
            "not a class made by pipeline.settings.settings",
        ),
        ("plain", ("rung=LiftRung", "rung=int"), "not a class made by pipeline.settings.settings"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_method_that_declares_too_little_is_refused(
    install: Install, kind: str, change: tuple[str, str], message: str
) -> None:
    install(kind, source(kind).replace(*change))
    with pytest.raises(ConfigError, match=message) as caught:
        policy_of({"kind": kind})
    assert caught.value.where == "policy.toml: ladder no. 1: kind"


@pytest.mark.parametrize("kind", ["nudge", "erase"])
def test_a_package_cannot_take_the_place_of_a_rung_that_ships(install: Install, kind: str) -> None:
    install(kind)
    with pytest.raises(ConfigError, match=f"two kinds of rung called '{kind}', one of them toy_{kind}:METHOD of toy_{kind}"):
        known_kinds()


def test_two_packages_cannot_bring_one_kind(install: Install) -> None:
    install("twice")
    install("twice", module="toy_again")
    with pytest.raises(ConfigError, match="two kinds of rung called 'twice'"):
        policy_of({"kind": "twice"})


def test_a_program_cannot_register_a_second_method_of_a_kind_that_ships() -> None:
    with pytest.raises(ConfigError, match="there are two kinds of rung called 'nudge'"):
        register(SteeringMethod(rung=NudgeRung, answer=lambda failed, rung, tools: None))


def test_every_method_that_ships_has_the_answer_that_it_names() -> None:
    for method in METHODS:
        assert callable(answer_of(method.rung()))
