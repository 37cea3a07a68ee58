"""A guard of another package takes part in a run, and no file of the product is touched for it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guards.conformance import check_guard
from guards.registry import describe, guard_class, open_guards, probe_guards
from index.errors import ConfigError, GuardUnavailable
from jobs.run.folder import open_folder
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.contents import report_numbers
from pipeline.audit.ledger import sample_rows
from pipeline.audit.policy_rows import policy_rows
from pipeline.audit.verify import verify
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.identity import guards_in_force, policy_in_force
from pipeline.policy import CodesPolicy, MarksPolicy, OutsideGuard, Policy, TextPolicy, UnsafePolicy
from pipeline.settings import from_dict, read_toml

from .conftest import drawing

TOY = '''
from __future__ import annotations

from guards.base import Defaults, Finding, Probe, require_pictures
from index.errors import ConfigError


class Brightness:
    """How bright a picture is."""

    name = "brightness"
    version = "brightness 1"
    categories = ("tone.bright",)
    licence = "MIT"
    defaults = Defaults(threshold=0.25, action="review")

    def __init__(self, threshold, options=()):
        self.threshold, self.options = threshold, options

    @classmethod
    def probe(cls, settings):
        return Probe(version=cls.version, weights={"none": "0" * 64})

    @classmethod
    def open(cls, settings):
        for option in settings.options:
            if option != "gentle":
                raise ConfigError(f"knows no option {option!r}", where="guard brightness", fix="Remove it, or write gentle")
        return cls(settings.threshold, settings.options)

    def check(self, pictures):
        require_pictures(pictures, guard=self.name)
        return [[self._one(float(picture.mean()) / 255)] for picture in pictures]

    def _one(self, score):
        return Finding(
            guard=self.name, version=self.version, category="tone.bright", score=score, threshold=self.threshold
        )
'''


class Package:
    """Installs a module with a guard beside the product: the module and what a package manager writes about it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, source: str = TOY, *, entry: str = "brightness = toy_guard:Brightness", name: str = "toy-guard") -> None:
        (self.folder / f"{name.replace('-', '_')}.py").write_text(source, encoding="utf-8")
        told = self.folder / f"{name.replace('-', '_')}-1.0.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (told / "entry_points.txt").write_text(f"[clearance.guards]\n{entry}\n", encoding="utf-8")
        importlib.invalidate_caches()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for name in ("toy_guard", "other_guard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return Package(folder)


def only(*guards: OutsideGuard, **tables: Any) -> Policy:
    """A policy with these guards, and without those of the product that take long to open."""
    off = {
        "marks": MarksPolicy(enabled=False),
        "text": TextPolicy(enabled=False),
        "unsafe": UnsafePolicy(enabled=False),
        "codes": CodesPolicy(enabled=False),
    }
    return Policy(guards=guards, **{**off, **tables})


def test_it_conforms(install: Package) -> None:
    install()
    (guard,), _ = open_guards({"brightness": OutsideGuard(name="brightness")})
    check_guard(guard, np.stack([np.asarray(drawing(seed)) for seed in range(3)]))


def test_it_takes_part_in_a_run(install: Package, tmp_path: Path, tiny_sd: Path) -> None:
    install()
    (tmp_path / "prompts.csv").write_text("prompt\nred apple\n")
    (tmp_path / "policy.toml").write_text(
        '[[guards]]\nname = "brightness"\nthreshold = 0.01\noptions = ["gentle"]\n'
        "[marks]\nenabled = false\n[text]\nenabled = false\n[unsafe]\nenabled = false\n[codes]\nenabled = false\n"
    )
    policy = read_toml(Policy, tmp_path / "policy.toml")
    config = RunConfig(
        prompts="prompts.csv",
        model=ModelConfig(path=str(tiny_sd), dtype="float32"),
        generation=GenerationConfig(steps=2, rows=4),
    )
    plan = Plan.make(config, policy, tmp_path)
    assert plan.identity["guard.brightness.version"] == "brightness 1"
    assert plan.identity["guard.brightness.action"] == "review"
    folder, _ = open_folder(tmp_path / "run", plan)
    result = run_local(plan, folder)
    (row,) = sample_rows(folder)
    (finding,) = row["findings"]
    assert (finding["guard"], finding["threshold"], finding["action"]) == ("brightness", 0.01, "review")
    assert (row["outcome"], row["reason"]) == ("review", "tone.bright")
    assert [guard["name"] for guard in result.statement["predicate"]["guards"]] == ["brightness"]
    assert [entry["guard"] for entry in report_numbers(folder)["guards"]] == ["brightness"]
    assert verify(folder).ok
    assert Plan.load(folder).policy == policy


def test_without_its_name_in_the_policy_it_is_not_used(install: Package) -> None:
    install()
    assert not guards_in_force(RunConfig(prompts="-"), only(), "d", "")


def test_its_own_defaults_hold_where_the_policy_sets_nothing(install: Package) -> None:
    install()
    policy = only(OutsideGuard(name="brightness"))
    (guard,), _ = open_guards({"brightness": policy.guards[0]})
    assert guard.threshold == 0.25  # type: ignore[attr-defined]
    (in_force,) = guards_in_force(RunConfig(prompts="-"), policy, "d", "")
    assert in_force.action == "review"
    assert policy_in_force(policy, [in_force]).guards[0].action == "review"


def test_doctor_lists_it(install: Package) -> None:
    install()
    (line,) = [line for line in describe() if line.name == "brightness"]
    assert (line.version, line.licence, line.categories, line.available) == ("brightness 1", "MIT", ("tone.bright",), True)


def test_the_report_shows_its_settings() -> None:
    rows = dict(policy_rows({"guards": [{"name": "brightness", "threshold": 0.5, "options": ["gentle"]}]}))
    assert rows["guard brightness"] == "threshold = 0.5, options = gentle"


def test_an_option_it_does_not_know_is_refused(install: Package) -> None:
    install()
    with pytest.raises(ConfigError, match="knows no option 'rough'"):
        open_guards({"brightness": OutsideGuard(name="brightness", options=("rough",))})


def test_an_unknown_guard_is_refused_and_the_likely_slip_named(install: Package) -> None:
    install()
    with pytest.raises(ConfigError, match=r"unknown guard 'brightnes'\. Did you mean 'brightness'\?"):
        guards_in_force(RunConfig(prompts="-"), only(OutsideGuard(name="brightnes")), "d", "")


def test_a_package_that_cannot_be_imported_stops_the_run(install: Package) -> None:
    install("import a_package_that_is_not_here\n")
    with pytest.raises(GuardUnavailable, match=r"toy_guard:Brightness of toy-guard cannot be imported.*required = false"):
        open_guards({"brightness": OutsideGuard(name="brightness")})


def test_a_package_that_cannot_be_imported_is_skipped_where_the_guard_is_optional(install: Package) -> None:
    install("import a_package_that_is_not_here\n")
    guards, (skipped,) = open_guards({"brightness": OutsideGuard(name="brightness", required=False)})
    assert guards == [] and skipped.startswith("brightness: ")


@pytest.mark.parametrize("raised", ["SystemExit(3)", "ValueError(chr(0xDC80))"])
@pytest.mark.parametrize("at", ["return cls(settings.threshold", "return Probe("])
def test_a_package_that_ends_the_process_or_raises_anything_stops_only_where_it_is_required(
    install: Package, at: str, raised: str
) -> None:
    install(TOY.replace(at, f"raise {raised}; {at}"))
    ask = open_guards if "cls" in at else probe_guards
    with pytest.raises(GuardUnavailable, match=r"toy-guard cannot be opened \((SystemExit: 3|ValueError: \\udc80)\)"):
        ask({"brightness": OutsideGuard(name="brightness")})
    _, (skipped,) = ask({"brightness": OutsideGuard(name="brightness", required=False)})
    assert skipped.encode().startswith(b"brightness: "), "it can be written down"
    told = next(line for line in describe() if line.name == "brightness")
    assert told.available == ("cls" in at), "doctor probes, and opens nothing"


@pytest.mark.parametrize(
    ("at", "answer", "what"),
    [
        ("return Probe(", "None", "its probe() answers None"),
        ("return Probe(", "Probe(version=5)", "and no Probe with a text as version"),
        ("return Probe(", "Probe(version='1', weights={'a': 1})", "its probe() answers the weights {'a': 1}"),
        ("return cls(settings.threshold", "None", "its open() answers None, and no guard called 'brightness'"),
        (
            "return Probe(",
            "Probe(version='brightness 2')",
            "its open() answers version 'brightness 1', and its probe() 'brightn",
        ),
    ],
)
def test_a_package_that_answers_nonsense_is_named(install: Package, at: str, answer: str, what: str) -> None:
    """Of doctor, too: whose guard no policy names must not end it."""
    install(TOY.replace(at, f"return {answer}; {at}"))
    with pytest.raises(GuardUnavailable) as refused:
        probe_guards({"brightness": OutsideGuard(name="brightness")})
        open_guards({"brightness": OutsideGuard(name="brightness")})
    assert "toy-guard cannot be opened (TypeError: " in refused.value.what and what in refused.value.what
    assert any(line.name == "brightness" for line in describe())


def test_a_package_that_ends_the_process_when_imported_cannot_be_imported(install: Package) -> None:
    install("raise SystemExit(0)\n")
    with pytest.raises(GuardUnavailable, match=r"cannot be imported \(SystemExit: 0\)"):
        open_guards({"brightness": OutsideGuard(name="brightness")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "brightness"', 'name = "bright"'), "calls itself 'bright'"),
        (('("tone.bright",)', "()"), "no categories"),
        (('licence = "MIT"', 'licence = ""'), "no licence"),
        (('action="review"', 'action="ignore"'), "no defaults"),
        (("threshold=0.25", 'threshold=float("nan")'), "no defaults"),
        (("def probe", "def look"), r"no probe\(\)"),
    ],
    ids=lambda value: str(value[1]) if isinstance(value, tuple) else None,
)
def test_a_class_that_declares_too_little_is_refused(install: Package, change: tuple[str, str], message: str) -> None:
    install(TOY.replace(*change))
    with pytest.raises(ConfigError, match=message):
        guard_class("brightness")


@pytest.mark.parametrize("name", ["marks", "copies"])
def test_a_package_cannot_take_the_place_of_a_guard_that_ships(install: Package, name: str) -> None:
    install(entry=f"{name} = toy_guard:Brightness")
    with pytest.raises(ConfigError, match=f"two guards called '{name}'.*toy-guard"):
        describe()


def test_two_packages_cannot_bring_one_name(install: Package) -> None:
    install()
    install(entry="brightness = other_guard:Brightness", name="other-guard")
    with pytest.raises(ConfigError, match="two guards called 'brightness'"):
        guard_class("brightness")


@pytest.mark.parametrize(
    ("guards", "message"),
    [
        ([{"name": "marks"}], r"below \[marks\]"),
        ([{"name": "classifier"}], r"is a guard that ships.*\[\[classifiers\]\]"),
        ([{"name": "question:x"}], r"is a guard that ships.*\[\[questions\]\]"),
        ([{"name": "toy:x"}], "the name without a colon"),
        ([{"name": "toy"}, {"name": "toy"}], "stands there twice"),
        ([{"threshold": 0.5}], "name"),
        ([{"name": "toy", "threshold": 50}], r"Did you mean 0\.5\?"),
        ([{"name": "toy", "treshold": 0.5}], r"Did you mean 'threshold'\?"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(guards: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Policy, {"guards": guards}, where="policy.toml")


def test_the_guards_that_ship_declare_the_policys_defaults() -> None:
    policy = Policy()
    for name in ("codes", "marks", "yolo", "unsafe", "text"):
        table, declared = getattr(policy, name), guard_class(name).defaults
        assert table.threshold == declared.threshold
        assert (table.action or "steer") == declared.action
