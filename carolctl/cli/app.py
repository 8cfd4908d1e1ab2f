"""The typer application: every command with its options, help and exit codes; errors leave as `CarolError`."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, TyperException
from typer.exceptions import Exit as TyperExit

from carolctl import __version__
from carolctl.cli.output import print_lines
from carolctl.errors import CarolError, Exit, UsageError


class _Contents(typer.core.TyperGroup):
    """Its ``--help`` lists `COMMANDS`, without a module of commands being imported."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([line for held in COMMANDS.values() for line in held.items()])


application = typer.Typer(
    cls=_Contents,
    name="carolctl",
    help="A job scheduler with no resident process: a timer fires `carolctl tick`, SQLite remembers.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


#: The commands by the module that registers them, in the order of the help, and what its list says of them.
COMMANDS: dict[str, dict[str, str]] = {
    "timer_commands": {
        "tick": "Fire what is due, reap what is dead, launch what got a slot.",
        "reap": "Record expired leases, lost processes and orphans of the legacy ledger, without firing anything.",
        "drain": "Bring the spool in: events, and outcomes that could not be written when they happened.",
        "prune": "Delete old runs, metrics, events and audit entries.",
    },
    "job_edit_commands": {
        "add-job": "Add a job.",
        "edit-job": "Change a job.",
    },
    "job_commands": {
        "remove-job": "Remove a job.",
        "list-jobs": "List the jobs, by id.",
        "show-job": "Show everything about a job.",
        "pause": "Pause a job, or without JOB everything.",
        "resume": "Resume a job, or without JOB everything.",
    },
    "run_commands": {
        "list-runs": "List runs, newest first: what ran, what was skipped and why.",
        "show-run": "Show everything about one run.",
        "monitor": "Show what truly runs now.",
        "logs": "Show the output of a run.",
        "run-job": "Run a job now, if a slot is free.",
        "cancel-run": "End a run.",
        "finish-run": "Record how a run ended.",
    },
    "trigger_commands": {
        "trigger": "Run a job for an event, once.",
    },
    "event_commands": {
        "emit": "Leave an event about a run.",
    },
    "pressure_commands": {
        "pressure": "Put due firings off while something interactive needs the machine.",
    },
    "schedule_commands": {
        "next": "Show when an expression fires.",
    },
    "config_commands": {
        "config": "Show and change settings.",
    },
    "forecast_commands": {
        "collision-check": "Show which schedules fall together, and how many turns that takes.",
    },
    "evidence_commands": {
        "why": "Say what became of a slot, or will, and show the rows that prove it.",
        "audit": "Prove that every slot of a period has exactly one row, or say which do not.",
        "stats": "Show waits, durations, lateness, turns and failures, and how they change.",
    },
    "change_commands": {
        "changes": "Show who changed what, when and why, newest first.",
    },
    "outlook_commands": {
        "forecast": "Show what will run in the coming hours under the cap: starts, waits and the peak.",
    },
    "migration_commands": {
        "migrate-jobs": "Bring the legacy planner database's jobs over.",
        "export-legacy": "Write the jobs in the shape of the legacy job table: the way back.",
    },
    "diagnosis_commands": {
        "locks": "Show who holds a database's write lock, since when, and doing what.",
    },
    "check_commands": {
        "contention-test": "Prove on this machine that writers do not starve each other.",
    },
    "upkeep_commands": {
        "doctor": "Look for everything that is wrong, and change nothing.",
        "backup": "Copy the job store while it is in use, or put a copy back.",
    },
    "timer_install_commands": {
        "install-timers": "Let systemd fire the tick every 30 seconds, and do the upkeep once a night.",
        "uninstall-timers": "Switch the timers off and remove their unit files.",
    },
}


def run(arguments: list[str]) -> int:
    """Parse `arguments` and run the command; raises `CarolError` for everything that goes wrong."""
    if arguments == ["--version"]:
        print_lines([f"carolctl {__version__}"])
        return Exit.OK
    name = arguments[0] if arguments else ""
    command = build(name)
    try:
        # Not command.main(): that turns Ctrl-C and a closed pipe into exit codes of its own.
        with command.make_context("carolctl", arguments) as context:
            result = command.invoke(context)
    except TyperExit as leave:
        return leave.exit_code
    except Abort:
        raise KeyboardInterrupt from None
    except TyperException as problem:
        raise _explained(problem, name) from None
    except UsageError as mistake:
        mistake.hint = mistake.hint or f"carolctl {name} --help"
        raise
    return result if isinstance(result, int) else Exit.OK


def build(name: str) -> typer.core.TyperGroup:
    """The application with the command `name` alone, or with all of them when there is none of that name.

    To build them all takes longer than most commands do, and for the list of ``--help`` none is needed.
    """
    if name in ("-h", "--help"):
        return typer.main.get_group(application)
    chosen = [module for module, names in COMMANDS.items() if name in names] or list(COMMANDS)
    for module in chosen:
        import_module(f"carolctl.cli.{module}")
    if len(chosen) == 1:
        commands, groups = application.registered_commands, application.registered_groups
        application.registered_commands = [info for info in commands if info.name == name]
        application.registered_groups = [info for info in groups if info.name == name]
    group = typer.main.get_group(application)
    if len(chosen) == 1:
        application.registered_commands, application.registered_groups = commands, groups
    return group


@application.callback(invoke_without_command=False)
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit", is_eager=True)
    ] = False,
) -> None:
    """A job scheduler with no resident process: a timer fires `carolctl tick`, SQLite remembers."""


def _explained(problem: TyperException, name: str) -> CarolError:
    context = getattr(problem, "ctx", None)
    # Not every mistake is told with its context: an option at the very end that lacks its value has none.
    known = any(name in names for names in COMMANDS.values())
    path = context.command_path if context is not None else f"carolctl {name}" if known else "carolctl"
    message = " ".join(problem.format_message().split())
    return UsageError(message, hint=f"{path} --help")
