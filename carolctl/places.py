"""Where things lie: the data home, the job store, the spool, the logs, the stamp of the last tick.

Plain functions over the environment, without dataclasses, because the idle tick needs two of them before it
can afford an import.
"""

import os


def data_home() -> str:
    """``CAROL_DATA_DIR``, else the installed units', else ``carolctl`` in ``$XDG_STATE_HOME`` or ``~/.local/state``.

    Whoever names a job store of their own (``CAROL_SCHEDULER_DB``) does not mean the installed one's home.
    """
    chosen = os.environ.get("CAROL_DATA_DIR")
    if chosen:
        return os.path.abspath(chosen)
    if not os.environ.get("CAROL_SCHEDULER_DB"):
        from carolctl import installed_units

        installed = installed_units.data_home()
        if installed:
            return installed
    return default_data_home()


def default_data_home() -> str:
    """``$XDG_STATE_HOME/carolctl``, else ``~/.local/state/carolctl``."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "carolctl")


def scheduler_db() -> str:
    """``CAROL_SCHEDULER_DB``, else ``scheduler.db`` in the data home."""
    return os.path.abspath(os.environ.get("CAROL_SCHEDULER_DB") or os.path.join(data_home(), "scheduler.db"))


def planner_db() -> str | None:
    """The legacy planner database, or None: ``CAROL_PLANNER_DB``, where an empty one means none, else the installed
    units'. Whoever names a data home or a job store of their own does not mean that one.
    """
    chosen = os.environ.get("CAROL_PLANNER_DB")
    if chosen is None and not (os.environ.get("CAROL_DATA_DIR") or os.environ.get("CAROL_SCHEDULER_DB")):
        from carolctl import installed_units

        chosen = installed_units.planner_db()
    return os.path.abspath(chosen) if chosen else None


def spool() -> str:
    """The spool; its folders ``tmp``, ``new`` and ``bad`` lie inside."""
    return os.path.join(data_home(), "spool")


def logs() -> str:
    """The captured output of runs that the process launcher started, one file a run."""
    return os.path.join(data_home(), "logs")


def results() -> str:
    """Where commands may leave a word about how they ended, one file a claim."""
    return os.path.join(data_home(), "results")


def tick_stamp() -> str:
    """An empty file whose modification time is that of the last tick."""
    return os.path.join(data_home(), "tick.stamp")
