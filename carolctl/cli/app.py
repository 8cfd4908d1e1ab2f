"""The typer application: every command with its options, help and exit codes; errors leave as `CarolError`."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

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


def run(arguments: list[str]) -> int:
    """Parse `arguments` and run the command; raises `CarolError` for everything that goes wrong."""
    if arguments == ["--version"]:
        print_lines([f"carolctl {__version__}"])
        return Exit.OK
    register()
    command = typer.main.get_command(application)
    try:
        result = command.main(args=arguments, prog_name="carolctl", standalone_mode=False)
    except Abort:
        raise KeyboardInterrupt from None
    except TyperException as problem:
        raise _explained(problem) from None
    return result if isinstance(result, int) else Exit.OK


def register() -> None:
    """Register all commands: importing a module of commands does it, and the order here is that of the help."""
    from carolctl.cli import timer_commands  # noqa: F401, I001
    from carolctl.cli import job_commands, run_commands, config_commands, migration_commands  # noqa: F401, I001


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
