"""The typer application: every command with its options, help and exit codes; errors leave as `CarolError`."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException
from typer.exceptions import Exit as TyperExit

from carolctl import __version__
from carolctl.cli.output import print_lines
from carolctl.errors import CarolError, Exit, UsageError

application = typer.Typer(
    name="carolctl",
    help="A job scheduler with no resident process: a timer fires `carolctl tick`, SQLite remembers.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


#: The commands by the module that registers them; the order is that of the help.
COMMANDS = {
    "timer_commands": ("tick", "reap", "drain", "prune"),
    "job_commands": ("add-job", "edit-job", "remove-job", "list-jobs", "show-job", "pause", "resume"),
    "run_commands": (
        "list-runs",
        "show-run",
        "monitor",
        "logs",
        "run-job",
        "cancel-run",
        "finish-run",
    ),
    "config_commands": ("next", "config"),
    "migration_commands": ("migrate-jobs", "export-legacy"),
}


def run(arguments: list[str]) -> int:
    """Parse `arguments` and run the command; raises `CarolError` for everything that goes wrong."""
    if arguments == ["--version"]:
        print_lines([f"carolctl {__version__}"])
        return Exit.OK
    command = build(arguments[0] if arguments else "")
    try:
        # Not command.main(): that turns Ctrl-C and a closed pipe into exit codes of its own.
        with command.make_context("carolctl", arguments) as context:
            result = command.invoke(context)
    except TyperExit as leave:
        return leave.exit_code
    except Abort:
        raise KeyboardInterrupt from None
    except TyperException as problem:
        raise _explained(problem) from None
    return result if isinstance(result, int) else Exit.OK


def build(name: str) -> typer.core.TyperGroup:
    """The application with the command `name` alone, or with all of them when there is none of that name.

    To build them all takes longer than most commands do.
    """
    chosen = [module for module, names in COMMANDS.items() if name in names] or list(COMMANDS)
    for module in chosen:
        import_module(f"carolctl.cli.{module}")
    if len(chosen) == 1:
        registered = application.registered_commands
        application.registered_commands = [info for info in registered if info.name == name]
    group = typer.main.get_group(application)
    if len(chosen) == 1:
        application.registered_commands = registered
    return group


@application.callback(invoke_without_command=False)
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit", is_eager=True)
    ] = False,
) -> None:
    """A job scheduler with no resident process: a timer fires `carolctl tick`, SQLite remembers."""


def _explained(problem: TyperException) -> CarolError:
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "carolctl"
    message = " ".join(problem.format_message().split())
    return UsageError(message, hint=f"{path} --help")
