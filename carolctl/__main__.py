"""The entry point. An idle tick and an emit are answered here, before anything expensive is imported.

The tick's unit runs this file by its path under ``-I -S``: to look through site-packages takes a tenth of an idle
tick, which needs nothing from there. Whatever turns out to be more than an idle tick gets them then.
"""

import os
import sys

if __name__ == "__main__" and not __package__:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main() -> None:
    """Run one command and end the process with its exit code."""
    os.umask(0o077)
    _fill_standard_descriptors()
    arguments = sys.argv[1:]
    if arguments and arguments[0] == "tick":
        from carolctl.store.idle import answer_idle_tick

        answer_idle_tick(arguments[1:])
    if arguments and arguments[0] == "emit":
        from carolctl.emit import answer

        arguments[1:] = answer(arguments[1:])
    _prepare()
    from carolctl.cli.entry import run

    _leave(run(arguments))


def _fill_standard_descriptors() -> None:
    """Open what the caller has closed: the next file to be opened would become standard output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while (opened := os.open(os.devnull, os.O_RDWR)) < number:
                pass
            setattr(sys, name, open(opened, "r" if number == 0 else "w"))  # noqa: SIM115


def _prepare() -> None:
    import gc

    if sys.flags.no_site:
        import site

        site.main()
    # Imports make objects that stay: to look through them for garbage takes a twentieth of a command.
    gc.set_threshold(50_000)


def _leave(code: int) -> None:
    """End without tearing down what is about to vanish, and without closing the store.

    The last connection of a WAL database to close checkpoints it: five fsyncs more.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    os._exit(code)


if __name__ == "__main__":
    main()
