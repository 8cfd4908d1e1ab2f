"""The command line of a unit, such that the job's argv survives whatever happens to the unit before it is run.

Incident: systemd 252 writes a transient unit to a file and reads it back at a daemon-reload, and spoils two
characters on the way: ``;`` and ``$`` come back behind a backslash. A package was upgraded while a run was being
started, and ``sh -c 'a; b'`` ran something else. Decision: a word that holds one of them, or bytes that D-Bus would
not carry, is spelt in other characters, and a program that is there for an instant becomes the command. Consequence:
arguments reach every job byte for byte, and still no process of ours stays.

The same program looks for a command that the tick does not see: systemd-run would refuse what is hidden from the
tick's sandbox, such as a program in a home folder or in /tmp.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from carolctl.launch.refusals import is_surely_missing
from carolctl.model import CommandAction

#: Neither of the two characters is in it. SIGPIPE and SIGXFSZ are what Python ignores. That the command was never
#: executed can only be told by the file for its result: this program was.
_BECOME = """
import os, signal, sys
def plain(word):
    first, *rest = os.fsencode(word).split(b'=')
    return b''.join([first, *(bytes.fromhex(part[:2].decode()) + part[2:] for part in rest)])
words = [plain(word) for word in sys.argv[1:]]
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
try:
    os.execvp(words[0], words)
except OSError as problem:
    import json
    why = os.fsencode(words[0]).decode('utf-8', 'replace') + ' cannot be run: ' + problem.strerror
    try:
        print(why, file=sys.stderr, flush=True)
        with open(os.environ['CAROL_RESULT_FILE'], 'w') as file:
            json.dump({'failure_reason': 'launch_failed', 'summary': why}, file)
    finally:
        os._exit(203)
"""
_SPOILT = "$;"


def carried(action: CommandAction) -> Sequence[str]:
    """The words of the unit's command: the job's own, or those of a program that becomes the job's."""
    program = _program(action)
    path = shutil.which(program)
    argv = (program, *action.argv[1:])
    if path is None and program.startswith("/") and is_surely_missing(program):
        # For systemd-run to refuse in its own words.
        return argv
    if path is not None and all(map(_survives, argv)):
        return argv
    if action.run_as is not None and not _anybody_may_run_python():
        return argv
    words = (os.path.abspath(path) if path else program, *argv[1:])
    return [os.path.abspath(sys.executable), "-I", "-S", "-X", "utf8", "-c", _BECOME, *map(spelt, words)]


def _program(action: CommandAction) -> str:
    """The program, its path taken from the folder in which the command begins."""
    program = action.argv[0]
    if "/" not in program or program.startswith("/"):
        return program
    return os.path.normpath(os.path.join(action.working_directory or os.getcwd(), program))


def _survives(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return not any(char in word for char in _SPOILT)


def spelt(word: str) -> str:
    """`word` in characters that arrive: ``=XX`` for the bytes that would not."""
    return "".join(
        "".join(f"={byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
        if char in "=$;" or "\udc80" <= char <= "\udcff"
        else char
        for char in word
    )


def _anybody_may_run_python() -> bool:
    """Whether another user can: an interpreter in somebody's home folder is out of reach."""
    for path in {os.path.abspath(sys.executable), os.path.realpath(sys.executable)}:
        above = path
        while above != "/":
            if not os.stat(above).st_mode & 0o001:
                return False
            above = os.path.dirname(above)
    return True
