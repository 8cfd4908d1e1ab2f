"""The typer application: every command with its options, help and exit codes; errors leave as `CarolError`."""

from __future__ import annotations

import typer
from typer.exceptions import Abort, TyperException

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
    _register()
    command = typer.main.get_command(application)
    try:
        result = command.main(args=arguments, prog_name="carolctl", standalone_mode=False)
    except Abort:
        raise KeyboardInterrupt from None
    except TyperException as problem:
        raise _explained(problem) from None
    return result if isinstance(result, int) else Exit.OK


def _register() -> None:
    """Importing a module of commands registers them."""
    from carolctl.cli import (  # noqa: F401
        config_commands,
        job_commands,
        migration_commands,
        run_commands,
        timer_commands,
    )


def _explained(problem: TyperException) -> CarolError:
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "carolctl"
    message = " ".join(problem.format_message().split())
    return UsageError(message, hint=f"{path} --help")
