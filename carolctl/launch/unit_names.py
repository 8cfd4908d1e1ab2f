"""What our units are called: the claim is part of the name, so that a name is never used twice.

Not by the same store. Incident: two stores of one user had a run 1 each, and to cancel the one killed the other.
Decision: the description of a unit ends with a tag of its store. Consequence: a name that another store has taken
proves nothing, is left alone, and its output is not shown.
"""

import os
import re
import zlib

SLICE = "carolctl.slice"


def run_unit(run_id: int, claim_no: int) -> str:
    """The name of the unit of one claim of a command run."""
    return f"carolctl-run-{run_id}-{claim_no}.service"


def http_unit(run_id: int, claim_no: int) -> str:
    """The name of the unit of HTTP runs that were launched together, by the first of them."""
    return f"carolctl-http-{run_id}-{claim_no}.service"


def gate_unit(pid: int, number: int) -> str:
    """The name of the gate that a launcher of many runs holds closed."""
    return f"carolctl-gate-{pid}-{number}.service"


def store_tag(db: str) -> str:
    """What tells the units of one store from those of another: eight hexadecimal digits, by its path."""
    return f"{zlib.crc32(os.fsencode(os.path.realpath(db))):08x}"


def described(about: str, tag: str) -> str:
    """The description of a unit of the store with that tag."""
    return f"carolctl: {about} [{tag}]"


def tag_of(description: str) -> str | None:
    """The tag in a description; None where there is none."""
    found = re.search(r" \[([0-9a-f]{8})\]$", description)
    return found[1] if found else None


def identifier(unit: str, tag: str) -> str:
    """What stands before each line of its output in the journal."""
    return f"{unit.removesuffix('.service')}.{tag}"
