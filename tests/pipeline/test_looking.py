"""Guard processes beside the denoiser: the same answers, a bounded queue, deaths and deadlines without loss, and no orphans."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.looking.activity import Activity, sentence
from pipeline.looking.looks import AHEAD, Looks
from pipeline.looking.pool import Pool
from pipeline.looking.study import Failed, Study
from pipeline.model.decoder import Decoder, PictureCalls

from .lookers import CRASH, HANG, LOCKED, MEMORY, RAISE, Looker, Opening

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    with ExitStack() as stack:

        def made(workers: int = 1, *, deadline: float = 60.0, opening: Any = None, **looker: Any) -> Pool:
            opening = opening or Opening(Looker(tmp_path, **looker))
            return stack.enter_context(closing(Pool(opening, workers, deadline=deadline, pauses=(0.01, 0.01))))

        yield made


def latent(value: float) -> np.ndarray:
    return np.full((4, 2, 2), value, np.float32)


def ask(pool: Pool, values: list[float]) -> dict[int, Any]:
    """Send pictures in one look; tag → answer, each exactly once."""
    assert pool.wait_ready()
    pool.submit(range(len(values)), [latent(v) for v in values], [[f"ref-{i}"] for i in range(len(values))])
    found: list[tuple[int, Any]] = []
    while len(found) < len(values):
        found += pool.answers(60.0)
    assert sorted(tag for tag, _ in found) == list(range(len(values)))
    return dict(found)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(pids: list[int], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


def processes(folder: Path) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in folder.glob("looked-*")]


def test_an_answer_is_what_the_same_guards_find_here(pool: Callable[..., Pool], tmp_path: Path) -> None:
    found = ask(pool(), [1.0, 2.0, 3.0])
    here = Looker(tmp_path)([latent(v) for v in (1.0, 2.0, 3.0)], [["ref-0"], ["ref-1"], ["ref-2"]])
    for tag, expected in enumerate(here):
        assert found[tag].picture.tobytes() == expected.picture.tobytes()
        assert found[tag].findings == expected.findings and found[tag].findings[0].detail == f"ref-{tag}"


def test_a_guard_that_raises_ends_one_picture_with_its_own_words(pool: Callable[..., Pool]) -> None:
    found = ask(pool(), [1.0, RAISE, MEMORY])
    assert isinstance(found[0], Study)
    assert found[1] == Failed(error_class="ValueError", message="guard marks: cannot look at this one")
    assert found[2] == Failed(error_class="MemoryError", message="no room", memory=True)


def test_pictures_of_a_process_that_died_are_looked_at_again(pool: Callable[..., Pool], tmp_path: Path) -> None:
    beside = pool(once=True)
    found = ask(beside, [1.0, CRASH, 3.0])
    assert all(isinstance(answer, Study) for answer in found.values())
    assert beside.activity.deaths == 1 and len(processes(tmp_path)) == 2


def test_a_picture_that_kills_a_process_twice_is_an_error_and_never_passes(pool: Callable[..., Pool]) -> None:
    beside = pool()
    found = ask(beside, [1.0, CRASH, 3.0])
    assert isinstance(found[0], Study) and isinstance(found[2], Study)
    assert found[1].error_class == "GuardDied" and found[1].message.startswith(
        "a guard process exited with 7; it is the second"
    )
    assert beside.activity.deaths == 2


def test_a_process_that_is_killed_is_replaced(pool: Callable[..., Pool], tmp_path: Path) -> None:
    beside = pool()
    ask(beside, [1.0])
    os.kill(processes(tmp_path)[0], signal.SIGKILL)
    assert isinstance(ask(beside, [2.0])[0], Study)


@pytest.mark.parametrize("word", [HANG, LOCKED])
def test_a_guard_that_never_returns_is_ended_at_the_deadline(pool: Callable[..., Pool], word: float, tmp_path: Path) -> None:
    found = ask(pool(deadline=1.0), [1.0, word])
    assert isinstance(found[0], Study)
    assert found[1].error_class == "GuardDied" and "took more than 1 s for looking and was ended" in found[1].message
    assert ended(processes(tmp_path))


def test_two_processes_share_the_looks(pool: Callable[..., Pool], tmp_path: Path) -> None:
    beside = pool(2, slow=0.3)
    beside.wait_ready()
    for tag in range(12):
        beside.submit([tag], [latent(1.0)], [[]])
    found: list[int] = []
    while len(found) < 12:
        found += [tag for tag, _ in beside.answers(60.0)]
    assert sorted(found) == list(range(12)) and len(processes(tmp_path)) == 2


def looks(pool: Pool | None, here: Callable[..., list[Study]]) -> Looks:
    return Looks(here, pool.activity if pool is not None else Activity(), pool)


def test_guards_that_cannot_open_beside_look_in_this_process_and_say_so(pool: Callable[..., Pool], tmp_path: Path) -> None:
    beside = pool(opening=Opening(Looker(tmp_path), fails="no memory"))
    assert not beside.wait_ready()
    both = looks(beside, Looker(tmp_path))
    both.show([5], [latent(1.0)], [[]])  # type: ignore[list-item]
    assert [tag for tag, _ in both.answers(wait=True)] == [5] and processes(tmp_path) == [os.getpid()]
    assert beside.activity.note == "0 of 1 guard processes: RuntimeError: no memory"


def test_guards_that_are_others_beside_do_not_look(tmp_path: Path) -> None:
    there = Opening(Looker(tmp_path, identity={"index": "b", "guard text": "1"}))
    with closing(Pool(there, 1, identity={"index": "a", "guard text": "1"})) as beside:
        assert not beside.wait_ready()
        assert beside.activity.note == "0 of 1 guard processes: index changed since the run began"


def test_a_place_that_stays_empty_for_a_moment_is_filled_again(pool: Callable[..., Pool], tmp_path: Path) -> None:
    """One failed try to replace a process costs neither the picture that ended it nor those beside it."""
    beside = pool(opening=Opening(Looker(tmp_path, once=True), fails_second=tmp_path / "tries"))
    found = ask(beside, [1.0, CRASH, 3.0])
    assert all(isinstance(answer, Study) for answer in found.values())
    assert len(list((tmp_path / "tries").iterdir())) == 3 and not beside.activity.note


def test_a_process_that_stands_still_is_ended_whatever_it_is_sent(pool: Callable[..., Pool], tmp_path: Path) -> None:
    """Stopped before it reads: more is sent than its pipe holds."""
    beside = pool(deadline=1.0)
    ask(beside, [1.0])
    os.kill(processes(tmp_path)[0], signal.SIGSTOP)
    large = np.full((4, 512, 512), 1.0, np.float32)
    beside.submit([0], [large], [[]])
    found = dict(beside.answers(60.0))
    assert isinstance(found[0], Study) and beside.activity.deaths == 1


def test_what_waits_for_a_process_that_cannot_be_replaced_is_looked_at_here(pool: Callable[..., Pool], tmp_path: Path) -> None:
    """But not what may have killed it: that could end this process too."""
    beside = pool(opening=Opening(Looker(tmp_path), only_first=tmp_path / "first"))
    beside.wait_ready()
    both = looks(beside, Looker(tmp_path))
    both.show([0, 1], [latent(CRASH), latent(1.0)], [[], []])  # type: ignore[list-item]
    both.show([2], [latent(2.0)], [[]])  # type: ignore[list-item]
    found: dict[int, Any] = {}
    while both.waiting:
        found |= dict(both.answers(wait=True))
    assert found[0].error_class == found[1].error_class == "GuardDied" and isinstance(found[2], Study)
    assert os.getpid() in processes(tmp_path)


def test_slow_guards_stop_the_denoiser_and_not_the_memory(pool: Callable[..., Pool], tmp_path: Path) -> None:
    beside = pool(slow=0.02)
    beside.wait_ready()
    both, shown, taken = looks(beside, Looker(tmp_path)), 0, 0
    while taken < 160:
        if shown < 160 and not both.full:
            both.show(range(shown, shown + 8), [latent(1.0)] * 8, [[]] * 8)  # type: ignore[list-item]
            shown += 8
        taken += len(both.answers(wait=both.full or shown == 160))
        assert both.waiting <= AHEAD
    assert taken == 160 and both.activity.blocked > 0.2
    assert both.activity.deepest == AHEAD


def test_until_a_process_is_ready_this_one_looks(tmp_path: Path) -> None:
    with closing(Pool(Opening(Looker(tmp_path)), 1)) as beside:
        both = looks(beside, Looker(tmp_path))
        both.show([0], [latent(1.0)], [[]])  # type: ignore[list-item]
        assert [tag for tag, _ in both.answers()] == [0] and both.activity.looked > 0
        assert beside.wait_ready()
        both.show([1], [latent(1.0)], [[]])  # type: ignore[list-item]
        assert [tag for tag, _ in both.answers(wait=True)] == [1]
        assert (both.activity.pictures, both.activity.beside) == (2, 1)


def test_a_closed_pool_leaves_no_process(pool: Callable[..., Pool], tmp_path: Path) -> None:
    beside = pool(2, slow=3600)
    beside.wait_ready()
    for tag in range(2):
        beside.submit([tag], [latent(1.0)], [[]])
    while len(processes(tmp_path)) < 2:
        time.sleep(0.02)
    beside.close()
    assert ended(processes(tmp_path), 0.0)


PARENT = """
import sys, time
from pathlib import Path
import numpy as np
from pipeline.looking.pool import Pool
from tests.pipeline.lookers import Looker, Opening, HANG, LOCKED
pool = Pool(Opening(Looker(Path(sys.argv[1]))), 1)
pool.wait_ready()
pool.submit([0], [np.full((4, 2, 2), float(sys.argv[2]), np.float32)], [[]])
pool.answers(3600.0)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_its_denoiser(tmp_path: Path, number: int) -> None:
    found = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), str(HANG)], env={**os.environ, "PYTHONPATH": found},
        stderr=subprocess.DEVNULL, start_new_session=True,
        # A suite that a shell runs in the background has SIGINT ignored, and so would the denoiser.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while not processes(tmp_path):
            assert parent.poll() is None
            time.sleep(0.02)
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)  # as a terminal does
        else:
            parent.send_signal(number)
        parent.wait(20)
        assert ended(processes(tmp_path))
    finally:
        parent.kill()
        parent.wait()


def test_a_decoder_begins_with_all_its_rows_in_another_process() -> None:
    """It halved them for want of memory that the other process may have."""
    calls = PictureCalls((8, 8), 8, "decoder")
    decoder = Decoder(object(), device=torch.device("cpu"), calls=calls, pixels=2)
    decoder.calls.shapes += (4,)
    assert pickle.loads(pickle.dumps(decoder)).calls.shapes == (8,) and decoder.calls.shapes == (8, 4)


def test_activity_adds_up() -> None:
    activity = Activity()
    with activity.spending("computed"):
        time.sleep(0.03)
    with activity.spending("blocked"):
        time.sleep(0.01)
    plain = activity.plain()
    assert plain["computed"] + plain["blocked"] <= plain["elapsed"] and plain["computed"] >= 0.03
    assert plain["waited"] == pytest.approx(plain["elapsed"] - plain["computed"])
    assert plain["busy"] == pytest.approx(plain["computed"] / plain["elapsed"])


def test_time_without_requests_does_not_count() -> None:
    activity = Activity()
    activity.touch(rested=True)
    time.sleep(0.05)
    before = time.monotonic()
    activity.touch(rested=True)
    assert activity.elapsed == 0
    time.sleep(0.01)
    activity.touch()
    assert 0.01 <= activity.elapsed <= time.monotonic() - before


def test_activity_in_one_line() -> None:
    plain = Activity(elapsed=50.0, computed=48.0, blocked=1.0, pictures=40, beside=38, deaths=2).plain()
    plain["guards"] = {"copies": 5.0, "text": 2.4}
    assert sentence(plain) == (
        "denoiser busy 96 % of 50 s; waiting for guards 2 %; guards 7 s for 40 pictures, 38 of them beside it; "
        "2 guard processes died and were replaced"
    )
    assert sentence(Activity().plain()) == ""
