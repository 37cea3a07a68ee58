"""The project that fuzzing starts from, and what it counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.project import COUNTS, make_project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Path:
    return make_project(tmp_path_factory.mktemp("fuzz") / "project", tiny_sd)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for group, counts in COUNTS.items():
        terminalreporter.write_line(f"fuzz {group}: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
