"""The output file of a command: what is kept of it, whatever comes in whatever pieces."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carolctl.launch.capture import CappedLog
from carolctl.lockguard import IOUnderLock, set_write_open
from tests.yard import python

CAP = 1024
PIECES = st.lists(
    st.one_of(st.binary(max_size=40), st.integers(0, 3000).map(lambda n: b"0123456789\n" * (n // 11)))
)


@given(pieces=PIECES)
def test_the_file_never_outgrows_its_cap_and_every_byte_is_kept_or_counted(pieces: list[bytes]) -> None:
    output = b"".join(pieces)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        log = CappedLog(str(path), CAP)
        for piece in pieces:
            log.add(piece)
            assert path.stat().st_size <= CAP
        log.close()
        kept = path.read_bytes()
    if len(output) <= CAP:
        assert kept == output
        return
    head, middle = kept[: CAP // 2], kept[CAP // 2 :]
    mark, _, tail = middle.removeprefix(b"\n[... ").partition(b" bytes left out ...]\n")
    assert output.startswith(head)
    assert output.endswith(tail)
    assert len(head) + int(mark) + len(tail) == len(output)


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (b"", None),
        (b"\n \n\t\n", None),
        (b"one\ntwo", "two"),
        (b"one\r\ntwo\r\n\r\n", "two"),
        (b"\x1b[1;32mgreen\x1b[0m \x1b]0;title\x07", "green ]0;title"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 10_000, "x" * 200),
        (b"early\n" + b" " * 10_000, None),
    ],
)
def test_the_last_line_is_the_last_that_says_anything(
    output: bytes, line: str | None, tmp_path: Path
) -> None:
    log = CappedLog(str(tmp_path / "log"), CAP)
    log.add(output)
    assert log.last_line() == line
    log.close()


def test_what_the_disk_refused_is_counted_once_it_takes_something_again(tmp_path: Path) -> None:
    code = """
import resource, sys
from carolctl.launch.capture import CappedLog
log = CappedLog(sys.argv[1], 1024)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (6, most))
for piece in (b"first\\n", b"second\\n", b"third\\n"):
    log.add(piece)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
log.add(b"fourth\\n")
"""
    subprocess.run(python(code, str(tmp_path / "log")), check=True, timeout=30)
    assert (tmp_path / "log").read_bytes() == b"first\n\n[... 13 bytes could not be written ...]\nfourth\n"


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    log = CappedLog(str(tmp_path / "log"), CAP)
    log.add(b"output\n")
    log.close()
    assert (tmp_path / "precious").read_text() == "kept"
    assert log.last_line() == "output"


def test_no_file_is_opened_while_a_write_is_open(tmp_path: Path) -> None:
    set_write_open(True)
    try:
        with pytest.raises(IOUnderLock):
            CappedLog(str(tmp_path / "log"), CAP)
    finally:
        set_write_open(False)
