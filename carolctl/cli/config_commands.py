"""What people call to see and change settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carolctl import config
from carolctl.cli.app import application
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, Json, Reason, checked_reason, help_epilog
from carolctl.cli.output import note, print_json, print_lines, tell
from carolctl.errors import NotFound, UsageError
from carolctl.notices import warn

if TYPE_CHECKING:
    from carolctl.session import Session

Key = Annotated[str, typer.Argument(metavar="KEY", help="Such as schedule.max_concurrent")]
Value = Annotated[str, typer.Argument(metavar="VALUE", help="Its new value")]

settings = typer.Typer(
    help="Show and change settings.",
    epilog=help_epilog("carolctl config set schedule.max_concurrent 3", x2="no such setting or value"),
    rich_markup_mode=None,
)
application.add_typer(settings, name="config")


# -- config ----------------------------------------------------------------------------------------------------


@settings.command("list", epilog=help_epilog("carolctl config list", x65="the job store is damaged"))
def list_settings(db: Db = None, as_json: Json = False) -> None:
    """List the settings.

    The value in force, where it comes from, and what it is for.
    """
    table = _table(db)
    documents = [_document(setting, table) for setting in config.REGISTRY]
    if as_json:
        print_json({"settings": documents})
        return
    from carolctl.cli import render

    columns = (
        render.Column(name="setting", least=33),
        render.Column(name="value", least=6, justify="right"),
        render.Column(name="from", least=11),
        render.Column(name="about", least=20, overflow="fold"),
    )
    render.table(None, columns, [(d["key"], d["value"], d["source"], d["about"]) for d in documents])


@settings.command(
    "get", epilog=help_epilog("carolctl config get schedule.max_concurrent", x2="no such setting")
)
def get_setting(key: Key, db: Db = None, as_json: Json = False) -> None:
    """Print one setting.

    The value in force; an empty line for none.
    """
    setting = _known(key)
    document = _document(setting, _table(db))
    if as_json:
        print_json(document)
    else:
        print_lines(["" if document["value"] is None else str(document["value"])])


@settings.command(
    "set",
    epilog=help_epilog(
        "carolctl config set schedule.max_concurrent 3",
        x2="no such setting, or a value it cannot have",
        x75="database busy",
        x77="called inside a run whose job may not schedule",
    ),
    # So that -1 is taken for a value, and refused as one.
    context_settings={"ignore_unknown_options": True},
)
def set_setting(key: Key, value: Value, reason: Reason = None, db: Db = None, as_json: Json = False) -> None:
    """Change one setting.

    It is kept in the job store, and in force from the next command on.
    """
    if not value.isprintable():
        raise UsageError("holds a character that cannot be printed", field=key[:40])
    meant = config.checked(key, value)
    why = _allowed(db, reason)
    session = open_session(db, create=True)
    changed = _write(session, "config set", key, str(meant), why)
    document = {"key": key, "value": meant, "changed": changed}
    tell(f"{key} is {meant}" if changed else f"{key} is {meant} already", document, as_json=as_json)
    variable = config.BY_KEY[key].env
    if variable and variable in os.environ:
        note(f"{variable} is set here and stands above it")


@settings.command(
    "unset",
    epilog=help_epilog(
        "carolctl config unset schedule.max_concurrent",
        x2="no such setting",
        x66="no job store yet",
        x75="database busy",
        x77="called inside a run whose job may not schedule",
    ),
)
def unset_setting(key: Key, reason: Reason = None, db: Db = None, as_json: Json = False) -> None:
    """Go back to the default of one setting."""
    default = _known(key).default
    why = _allowed(db, reason)
    changed = _write(open_session(db), "config unset", key, None, why)
    line = (
        f"{key} is {'none' if default is None else default}, its default" if changed else f"{key} was not set"
    )
    tell(line, {"key": key, "value": default, "changed": changed}, as_json=as_json)


def _allowed(db: str | None, reason: str | None) -> str | None:
    """The reason of a change that may be made. Raises `UsageError`, `NotPermitted`."""
    from carolctl.permission import refuse_recursion

    why = checked_reason(reason)
    refuse_recursion(db, "no setting is changed")
    return why


def _known(key: str) -> config.Setting:
    setting = config.BY_KEY.get(key)
    if setting is None:
        raise UsageError(f"no such setting: {key[:80]!a}", hint="carolctl config list shows them all")
    return setting


def _table(db: str | None) -> dict[str, str]:
    """The settings table; empty as long as there is no job store."""
    try:
        session = open_session(db)
    except NotFound:
        return {}
    with session.store.read() as tx:
        return tx.settings_table()


def _document(setting: config.Setting, table: dict[str, str]) -> dict[str, Any]:
    value, source = config.value_and_source(setting, table, os.environ, warn)
    return {
        "key": setting.key,
        "value": value,
        "source": source,
        "default": setting.default,
        "env": setting.env,
        "about": setting.about,
    }


def _write(session: Session, command: str, key: str, value: str | None, reason: str | None) -> bool:
    from carolctl.store.records import AuditEntry

    with session.store.write() as tx:
        before = tx.settings_table().get(key)
        if before == value:
            return False
        if value is None:
            tx.unset_setting(key)
        else:
            tx.set_setting(key, value, now=session.now)
        entry = AuditEntry(
            at=session.now,
            actor=session.actor,
            command=command,
            subject=key,
            before=before,
            after=value,
            reason=reason,
        )
        tx.audit(entry)
    return True
