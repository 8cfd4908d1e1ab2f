"""What timers and runs call: tick, reap, drain, prune. Without typer, unless an option needs explaining.

`run_plain` takes the plain forms of these commands; anything else, ``--help`` and mistakes included, is left to
the typer application, which calls the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from carolctl.cli.output import print_json, print_lines
from carolctl.errors import Exit

_FLAGS = {"--json": "as_json", "--dry-run": "dry_run"}
_VALUES = {"--db": "db", "--planner-db": "planner_db"}


def run_plain(arguments: list[str]) -> int | None:
    """Run a plain call of a timer's command and return its exit code; None if it is not one."""
    if not arguments or arguments[0] not in _COMMANDS:
        return None
    command, allowed = _COMMANDS[arguments[0]]
    options = _plain_options(arguments[1:])
    if options is None or not allowed.issuperset(options):
        return None
    return command(**options)


def _plain_options(words: list[str]) -> dict[str, Any] | None:
    options: dict[str, Any] = {}
    remaining = iter(words)
    for word in remaining:
        if word in _FLAGS:
            options[_FLAGS[word]] = True
        elif word in _VALUES:
            value = next(remaining, None)
            if value is None:
                return None
            options[_VALUES[word]] = value
        else:
            return None
    return options


def tick(
    *, db: str | None = None, planner_db: str | None = None, as_json: bool = False, dry_run: bool = False
) -> int:
    """Fire what is due, reap what is dead, launch what got a slot."""
    from dataclasses import asdict

    from carolctl.session import open_session
    from carolctl.tick import tick as run_tick

    report = run_tick(open_session(db, planner_db=planner_db), dry_run=dry_run)
    _show(asdict(report), as_json=as_json, dry_run=dry_run)
    return Exit.OK


def reap(
    *,
    db: str | None = None,
    planner_db: str | None = None,
    ledger_id: int | None = None,
    as_json: bool = False,
    dry_run: bool = False,
) -> int:
    """Only the sweep: expired leases, lost processes and orphans; or one row of the ledger, `ledger_id`."""
    from dataclasses import asdict

    from carolctl.reap import reap as run_reap
    from carolctl.reap import reap_ledger_row
    from carolctl.session import open_session

    session = open_session(db, planner_db=planner_db)
    if ledger_id is None:
        report = run_reap(session, dry_run=dry_run)
    else:
        report = reap_ledger_row(session, ledger_id, dry_run=dry_run)
    _show(asdict(report), as_json=as_json, dry_run=dry_run)
    return Exit.OK


def drain(*, db: str | None = None, as_json: bool = False) -> int:
    """Only the spool: outcomes that could not be written when they happened, and events."""
    from dataclasses import asdict

    from carolctl.drain import drain as run_drain
    from carolctl.session import open_session

    _show(asdict(run_drain(open_session(db))), as_json=as_json)
    return Exit.OK


def prune(*, db: str | None = None, as_json: bool = False, dry_run: bool = False) -> int:
    """Delete old runs, metrics, events and audit entries in small batches."""
    from carolctl.prune import prune as run_prune
    from carolctl.session import open_session

    _show({"pruned": run_prune(open_session(db), dry_run=dry_run)}, as_json=as_json, dry_run=dry_run)
    return Exit.OK


_COMMANDS: dict[str, tuple[Callable[..., int], frozenset[str]]] = {
    "tick": (tick, frozenset({"db", "planner_db", "as_json", "dry_run"})),
    "reap": (reap, frozenset({"db", "planner_db", "as_json", "dry_run"})),
    "drain": (drain, frozenset({"db", "as_json"})),
    "prune": (prune, frozenset({"db", "as_json", "dry_run"})),
}


def _show(report: dict[str, Any], *, as_json: bool, dry_run: bool = False) -> None:
    if as_json:
        print_json(report | {"dry_run": True} if dry_run else report)
        return
    words = [part for key, value in report.items() if (part := _phrase(key, value))]
    prefix = "dry run, nothing was changed: " if dry_run else ""
    print_lines([prefix + ("; ".join(words) or "nothing to do")])


def _phrase(key: str, value: Any) -> str:
    """One member of a report in words; nothing for what did not happen."""
    if key == "paused":
        return "paused: nothing is fired, claimed or swept" if value else ""
    if isinstance(value, dict):
        inner = ", ".join(f"{name} {count}" for name, count in value.items() if count)
        return f"{key}: {inner}" if inner else ""
    if isinstance(value, list):
        return f"{key} {len(value)} ({_some(value)})" if value else ""
    if key.endswith("_ms"):
        return f"write lock held {value:.1f} ms" if key == "write_lock_ms" and value else ""
    label = "set aside" if key == "bad" else key
    return f"{label} {value}" if value else ""


def _some(values: list[Any], most: int = 8) -> str:
    shown = ", ".join(str(value) for value in values[:most])
    return shown if len(values) <= most else f"{shown}, ..."
