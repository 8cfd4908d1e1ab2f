"""The options that describe a job, one definition for add-job and edit-job."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from carolctl.said import Said


def _option(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text)


#: By field of `Said`, in the order of the help.
_OPTIONS: dict[str, Any] = {
    "argv": typer.Argument(metavar="[-- ARGV...]", help="The command, word by word; no shell reads it"),
    "cron": _option("--cron", "EXPR", "Five cron fields, or an alias such as @hourly"),
    "daily_at": _option("--daily-at", "HH:MM", "Once a day at this time of the zone"),
    "every": _option("--every", "DUR", "By elapsed time: 90s, 15m, 2h, 1d"),
    "at": _option("--at", "ISO", "Once, at this instant; without an offset in the job's zone"),
    "manual": typer.Option("--manual", help="Never by itself: run-job and triggers only"),
    "timezone": _option("--timezone", "ZONE", "IANA zone of the schedule [UTC]"),
    "dst_rule": _option(
        "--dst-rule", "once|literal", "At a clock change: once, or as the wall clock reads [once]"
    ),
    "spread": _option("--spread", "DUR", "Put off by a fixed time of the job's own within DUR [0]"),
    "url": _option("--url", "URL", "The endpoint to call"),
    "method": _option("--method", "M", "HTTP method [POST]"),
    "header": typer.Option(
        "--header",
        metavar="'K: V'",
        help="Request header, repeatable; a secret as ${env:NAME} or ${file:PATH}; replaces all before",
    ),
    "payload": _option("--payload", "JSON", "What the request carries, as JSON"),
    "project": _option("--project", "P", "The project it belongs to"),
    "description": _option("--description", "T", "What it is for"),
    "priority": _option("--priority", "N", "-100 to 100, the higher runs first [0]"),
    "overlap": _option("--overlap", "skip|queue|allow", "When the last run still lives [skip]"),
    "catch_up": _option("--catch-up", "latest|all|skip", "What to do about missed slots [latest]"),
    "misfire_grace": _option("--misfire-grace", "DUR", "Skip what is later than this [none]"),
    "max_run_duration": _option(
        "--max-run-duration", "DUR", "Its lease [none: schedule.max_run_duration_sec]"
    ),
    "max_turns": _option("--max-turns", "N", "Its turn budget [none: schedule.max_turns]"),
    "max_attempts": _option("--max-attempts", "N", "Tries per slot [1]"),
    "idempotent": typer.Option("--idempotent/--no-idempotent", help="Doing it twice does no harm [no]"),
    "may_schedule": typer.Option(
        "--may-schedule/--no-may-schedule", help="Its runs may add, change and run jobs [no]"
    ),
    "agent_profile": _option("--agent-profile", "P", "The profile its agent runs under"),
    "on_failure": _option("--on-failure", "JOB", "Trigger this job after its last attempt failed"),
    "run_as": _option("--run-as", "USER", "The user a command runs as; needs root's systemd [none]"),
    "working_directory": _option("--working-directory", "DIR", "The folder a command starts in [none]"),
    "environment_file": _option("--environment-file", "PATH", "NAME=value lines for a command [none]"),
    "load_credential": typer.Option(
        "--load-credential",
        metavar="ID:PATH",
        help="A file for $CREDENTIALS_DIRECTORY, repeatable; needs systemd; replaces all before",
    ),
    "memory_max": _option("--memory-max", "SIZE", "Most memory of a command: 512M, 2G; needs systemd [none]"),
    "cpu_quota": _option("--cpu-quota", "N%", "Most processor time: 50%, 200%; needs systemd [none]"),
    "sandbox": typer.Option(
        "--sandbox/--no-sandbox", help="A command gains no privileges, sudo fails; systemd only [yes]"
    ),
}


def describes_a_job(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of `Said` in place of its parameter ``said``."""
    own = inspect.signature(function, eval_str=True)
    hints = get_type_hints(Said)
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[hints[name], option]
        )
        for name, option in _OPTIONS.items()
    ]
    before = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    after = [
        p for p in own.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "said"
    ]

    @wraps(function)
    def command(**given: Any) -> None:
        # An option that may be repeated comes as an empty list when it was not given.
        spoken = {name: value for name in _OPTIONS if (value := given.pop(name)) not in (None, [])}
        function(**given, said=Said(**spoken))

    command.__signature__ = own.replace(parameters=[*before, *options, *after])  # type: ignore[attr-defined]
    return command
