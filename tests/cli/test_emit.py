"""emit as agents call it: what it acknowledges is on disk, and what is not on disk it does not acknowledge."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from carolctl.model import Millis
from carolctl.store.db import Store
from tests import builders
from tests.arch.test_startup import imported, top
from tests.builders import T0, Carol, Result, job

README = (Path(__file__).parents[2] / "README.md").read_text()
NOW = "2026-01-01T00:00:00Z"


def lying(home: Path, folder: str = "new") -> dict[str, Any]:
    """The events in a folder of the spool, each by the name that it has as a file of its own."""
    found: dict[str, Any] = {}
    for path in (home / "spool" / folder).iterdir():
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                document = json.loads(line)
                found[f"event-{document['event_id']}.json"] = document
    return found


def stored(carol: Carol, run: int = 1) -> list[dict[str, Any]]:
    shown = carol("show-run", str(run), "--json").json()
    found: list[dict[str, Any]] = shown["events"]
    return found


def with_run(home: Path) -> None:
    """A store with one queued run."""
    builders.add_jobs(home, job(next_fire_at=None))
    opened = builders.store(home)
    with opened.write() as tx:
        tx.insert_run("nightly", source="manual", now=Millis(T0))
    opened.close()


# -- what is acknowledged ----


def test_an_event_is_a_line_of_a_private_file_in_a_data_home_that_need_not_be_there(
    home: Path, carol: Carol
) -> None:
    done = carol("emit", "5", "--kind", "progress", "--data", '{"done": [1, "ü"]}')
    assert (done.code, done.err) == (0, "")
    event_id = done.out.strip()
    assert re.fullmatch("[0-9a-f]{32}", event_id)
    [document] = lying(home).values()
    [log] = (home / "spool" / "new").iterdir()
    assert log.name == "events.jsonl"
    assert abs(document.pop("emitted_at") / 1000 - log.stat().st_mtime) < 5
    assert document == {
        "kind": "event", "event_id": event_id, "run_id": 5, "event_kind": "progress", "data": {"done": [1, "ü"]},
    }  # fmt: skip
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (home, *home.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


@pytest.mark.parametrize("pinned", [False, True], ids=["plain", "through typer"])
def test_json_and_an_id_of_ones_own_and_the_claim_of_the_run_around(
    home: Path, carol: Carol, pinned: bool
) -> None:
    inside = partial(carol, CAROL_RUN_ID="5", CAROL_CLAIM="2")
    if pinned:
        inside = partial(inside, CAROL_NOW=NOW)
    words = ("--kind", "turns", "--turns", "12", "--event-id", "mine", "--json")
    for arguments in (("emit", "5", *words), ("emit", *words, "5")):
        assert inside(*arguments).json() == {"event_id": "mine"}
    document = lying(home)["event-mine.json"]
    assert (document["turns"], document["claim"]) == (12, 2)
    assert (document["emitted_at"] == T0) == pinned


def test_an_event_that_was_emitted_before_its_run_was_known_shows_in_show_run(
    home: Path, carol: Carol
) -> None:
    assert carol("emit", "1", "--kind", "heartbeat", "--event-id", "early").code == 0
    with_run(home)
    assert carol("tick", CAROL_NOW=NOW).code == 0
    assert [event["event_id"] for event in stored(carol)] == ["early"]


def test_a_database_that_is_locked_is_not_asked(home: Path, carol: Carol) -> None:
    (home).mkdir(mode=0o700)
    (home / "scheduler.db").write_text("this is no database")
    assert carol("emit", "1", "--kind", "heartbeat").code == 0


# -- what is refused ----


@pytest.mark.parametrize(
    ("named", "arguments"),
    [("RUN", ("x", "--kind", "k")), ("kind", ("1", "--kind", "K!")), ("turns", ("1", "--kind", "k", "--turns", "-1")),
     ("turns", ("1", "--kind", "turns")), ("data", ("1", "--kind", "k", "--data", "{")),
     ("data", ("1", "--kind", "k", "--data", '"\udcff"')), ("data", ("1", "--kind", "k", "--data", "[" * 60_000)),
     ("event-id", ("1", "--kind", "k", "--event-id", "a/b")), ("--kind", ("1",)), ("RUN", ("--kind", "k")),
     ("--colour", ("1", "--kind", "k", "--colour")), ("2", ("1", "2", "--kind", "k"))],
)  # fmt: skip
def test_a_wrong_value_is_a_usage_error_that_names_the_option_and_leaves_nothing(
    inside: Callable[..., Result], home: Path, named: str, arguments: tuple[str, ...]
) -> None:
    done = inside("emit", *arguments, "--json")
    assert (done.code, done.out) == (2, "")
    assert named in done.error()["message"]
    assert not home.exists()


def test_a_wrong_value_is_refused_by_the_program_itself_too(home: Path, carol: Carol) -> None:
    done = carol("emit", "1", "--kind", "K!")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert not home.exists()


def test_a_spool_that_is_no_folder_is_bad_data(home: Path, carol: Carol) -> None:
    home.mkdir()
    (home / "spool").write_text("")
    done = carol("emit", "1", "--kind", "k", "--json")
    assert (done.code, done.out, done.error()["error"]) == (65, "", "bad_data")


#: Nobody may be able to read the libraries: they are imported first.
_AS_NOBODY = """
import os, sys
import carolctl.cli.entry, carolctl.cli.event_commands, carolctl.emit
from carolctl.__main__ import main
os.setgid(65534)
os.setuid(65534)
sys.argv[1:] = ["emit", "1", "--kind", "k", "--json"]
main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_data_home_of_somebody_else_is_not_permitted_and_nothing_is_acknowledged(
    home: Path, carol: Carol
) -> None:
    (home / "spool" / "tmp").mkdir(parents=True, mode=0o700)
    done = subprocess.run(
        [sys.executable, "-I", "-c", _AS_NOBODY],
        env=carol.environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (77, ""), done.stderr
    refused = json.loads(done.stderr)
    assert refused["error"] == "not_permitted"
    assert f"--event-id {refused['event_id']}" in refused["hint"]


# -- a disk of its own ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 640 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=640k,mode=0700", "carol-test", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Use up the last byte; the file that did."""
    ballast = place / "ballast"
    with open(ballast, "ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return ballast


def test_a_full_disk_refuses_an_event_loses_none_and_all_goes_on_by_itself_once_there_is_room(
    small_disk: Path,
) -> None:
    carol = Carol(small_disk / "home")
    with_run(carol.home)
    acknowledged = [carol("emit", "1", "--kind", "k").out.strip() for _ in range(3)]
    ballast = fill(small_disk)
    # More than the log's last block may have room for.
    much = ("--data", json.dumps("x" * 8192))
    for words in ((), ("--event-id", "again")):
        refused = carol("emit", "1", "--kind", "k", "--json", *much, *words)
        assert (refused.code, refused.out, refused.error()["error"]) == (75, "", "disk_full")
        assert f"--event-id {words[1] if words else ''}" in refused.error()["hint"]
    assert lying(carol.home, "tmp") == {}
    assert carol("tick", "--json", CAROL_NOW=NOW).code == 75
    assert len(lying(carol.home)) == 3
    ballast.unlink()
    assert carol("emit", "1", "--kind", "k", "--event-id", "again").code == 0
    assert carol("tick", "--json", CAROL_NOW=NOW).code == 0
    assert {event["event_id"] for event in stored(carol)} == {*acknowledged, "again"}
    assert lying(carol.home) == {}


def test_a_read_only_disk_refuses_an_event(small_disk: Path) -> None:
    carol = Carol(small_disk / "home")
    assert carol("emit", "1", "--kind", "k").code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = carol("emit", "1", "--kind", "k", "--json")
    assert (refused.code, refused.out, refused.error()["error"]) == (77, "", "not_permitted")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert len(lying(carol.home)) == 1


# -- without Python ----


def documented() -> str:
    """The shell of the README, as it stands there."""
    [snippet] = re.findall(r"<!-- emit by hand -->\n```sh\n(.*?)```", README, re.DOTALL)
    return str(snippet)


def test_the_shell_of_the_readme_emits_an_event_that_is_taken_in(
    home: Path, carol: Carol, store: Callable[..., Store]
) -> None:
    with_run(home)
    env = carol.environment(CAROL_RUN_ID="1", CAROL_CLAIM="1")
    for _ in range(2):
        done = subprocess.run(
            ["sh", "-c", documented()], env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert carol("drain", "--json").json() == {"drained": [], "launched": [], "events": 2, "bad": 0}
    assert [event["turns"] for event in stored(carol)] == [12, 12]


def test_the_shell_of_the_readme_does_not_say_that_it_stored_what_it_could_not(small_disk: Path) -> None:
    carol = Carol(small_disk / "home")
    assert carol("emit", "1", "--kind", "k").code == 0
    fill(small_disk)
    env = carol.environment(CAROL_RUN_ID="1", CAROL_CLAIM="1")
    done = subprocess.run(["sh", "-c", documented()], env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert len(lying(carol.home)) == 1


# -- how fast ----


def test_a_plain_emit_imports_no_database_no_command_line_and_nothing_costly(
    home: Path, carol: Carol
) -> None:
    found = imported(carol, "emit", "1", "--kind", "turns", "--turns", "12")
    costly = {
        "sqlite3",
        "typer",
        "json",
        "dataclasses",
        "enum",
        "re",
        "datetime",
        "subprocess",
        "rich",
        "click",
    }
    assert not top(found) & costly
    ours = {name for name in found if name.startswith("carolctl.")}
    assert ours <= {
        "carolctl.__main__", "carolctl.emit", "carolctl.errors", "carolctl.event_append", "carolctl.event_values",
        "carolctl.failpoints", "carolctl.lockguard", "carolctl.spool_owner", "carolctl.places", "carolctl.spool_write",
    }  # fmt: skip


def test_data_costs_one_library_and_a_mistake_costs_no_database(home: Path, carol: Carol) -> None:
    assert not top(imported(carol, "emit", "1", "--kind", "k", "--data", "1")) & {
        "sqlite3",
        "typer",
        "dataclasses",
    }
    assert "sqlite3" not in top(imported(carol, "emit", "1", "--kind", "K!", code=2))
