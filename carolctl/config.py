"""Settings: one registry, one precedence (flag, environment, settings table, default), one frozen result.

A value that is not a proper number is refused on the command line; in the environment it is warned about and
the next source is used, because a typing mistake in a unit file must never stop the tick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from carolctl.errors import UsageError

DEFAULT_BUSY_TIMEOUT_MS = 5000
LAUNCHERS = ("auto", "systemd", "process")


def whole_number(text: str, *, least: int = 0) -> int:
    """A plain decimal integer of at least `least`; ValueError otherwise (``1_0``, ``+5`` and ``٣`` included)."""
    text = text.strip()
    proper = text.isascii() and text.isdigit() and len(text) <= 12
    if not proper or int(text) < least:
        raise ValueError(f"not a whole number of at least {least}, at most 12 digits long")
    return int(text)


def _at_least(least: int) -> Callable[[str], int]:
    return lambda text: whole_number(text, least=least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: its key in the table, its variable, its default, how text becomes a value, what it is."""

    key: str
    field: str
    env: str | None = None
    default: int | str | None
    parse: Callable[[str], int | str]
    about: str


def _absolute_path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("must be an absolute path")
    return text


def _names(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or not text.isprintable():
        raise ValueError("must be names with commas between")
    return ",".join(dict.fromkeys(names))


REGISTRY: tuple[Setting, ...] = (
    Setting(key="schedule.max_concurrent", field="max_concurrent", env="SCHEDULE_MAX_CONCURRENT", default=2,
            parse=_at_least(0), about="global cap: runs at once over all jobs; 0 fires nothing"),
    Setting(key="schedule.max_run_duration_sec", field="max_run_duration_sec",
            env="SCHEDULE_MAX_RUN_DURATION_SEC", default=1200, parse=_at_least(1),
            about="lease of a run in seconds, unless its job has its own"),
    Setting(key="schedule.max_turns", field="max_turns", default=None, parse=_at_least(1),
            about="turn budget of a run, unless its job has its own"),
    Setting(key="schedule.chat_pressure_delay_sec", field="chat_pressure_delay_sec",
            env="SCHEDULE_CHAT_PRESSURE_DELAY_SEC", default=30, parse=_at_least(1),
            about="how long a due firing is put off while pressure is held, in seconds"),
    Setting(key="pressure.max_deferral_sec", field="max_deferral_sec", default=3600, parse=_at_least(1),
            about="how long pressure puts a due firing off in total, in seconds; then it fires all the same"),
    Setting(key="reap.orphan_threshold_min", field="orphan_threshold_min", env="ORPHAN_THRESHOLD_MIN",
            default=30, parse=_at_least(1), about="age in minutes at which a foreign ledger row is an orphan"),
    Setting(key="streak.failure_pause", field="failure_pause", default=3, parse=_at_least(1),
            about="failures in a row that pause a job"),
    Setting(key="streak.breach_warn", field="breach_warn", default=2, parse=_at_least(1),
            about="turn-limit breaches in a row that warn"),
    Setting(key="streak.breach_pause", field="breach_pause", default=5, parse=_at_least(1),
            about="turn-limit breaches in a row that pause a job"),
    Setting(key="streak.lease_drift_warn", field="lease_drift_warn", default=3, parse=_at_least(1),
            about="firings in a row above 80 % of their lease that warn"),
    Setting(key="retention.runs_days", field="retention_runs_days", default=90, parse=_at_least(1),
            about="days that ended runs are kept"),
    Setting(key="retention.metrics_days", field="retention_metrics_days", default=30, parse=_at_least(1),
            about="days that firing metrics are kept"),
    Setting(key="retention.events_days", field="retention_events_days", default=30, parse=_at_least(1),
            about="days that events are kept"),
    Setting(key="retention.audit_days", field="retention_audit_days", default=365, parse=_at_least(1),
            about="days that the audit log is kept"),
    Setting(key="logs.max_kib", field="log_max_kib", default=1024, parse=_at_least(1),
            about="how much of a run's output the process launcher keeps, in KiB"),
    Setting(key="collision.threshold_turns", field="collision_threshold_turns", default=3000,
            parse=_at_least(0), about="turns in five minutes above which schedules collide"),
    Setting(key="collision.default_turns", field="collision_default_turns", default=50, parse=_at_least(0),
            about="turns of a firing that has neither an average nor a budget, for collision-check"),
    Setting(key="requesters.allowed", field="requesters_allowed", default=None, parse=_names,
            about="who may run and trigger jobs: names with commas between; unset: anyone"),
    Setting(key="http.ca_file", field="http_ca_file", default=None, parse=_absolute_path,
            about="certificates to trust for https endpoints, instead of the built-in ones"),
)  # fmt: skip
BY_KEY: dict[str, Setting] = {setting.key: setting for setting in REGISTRY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in force for one command."""

    max_concurrent: int = 2
    max_run_duration_sec: int = 1200
    max_turns: int | None = None
    chat_pressure_delay_sec: int = 30
    max_deferral_sec: int = 3600
    orphan_threshold_min: int = 30
    failure_pause: int = 3
    breach_warn: int = 2
    breach_pause: int = 5
    lease_drift_warn: int = 3
    retention_runs_days: int = 90
    retention_metrics_days: int = 30
    retention_events_days: int = 30
    retention_audit_days: int = 365
    log_max_kib: int = 1024
    collision_threshold_turns: int = 3000
    collision_default_turns: int = 50
    requesters_allowed: str | None = None
    http_ca_file: str | None = None


def checked(key: str, text: str) -> int | str:
    """The value that `text` means for the setting `key`; `UsageError` naming it otherwise."""
    setting = BY_KEY.get(key)
    if setting is None:
        raise UsageError(f"no such setting: {key!r}", hint="carolctl config list shows them all")
    try:
        return setting.parse(text)
    except ValueError as problem:
        raise UsageError(f"{problem}: {text!r}", field=key) from None


def resolve(table: Mapping[str, str], environ: Mapping[str, str], warn: Callable[[str], None]) -> Settings:
    """The settings in force, from the settings table and the environment; bad values are warned about."""
    values = {setting.field: value_and_source(setting, table, environ, warn)[0] for setting in REGISTRY}
    return Settings(**values)  # type: ignore[arg-type]


def value_and_source(
    setting: Setting, table: Mapping[str, str], environ: Mapping[str, str], warn: Callable[[str], None]
) -> tuple[int | str | None, str]:
    """The value of one setting and where it comes from: ``environment``, ``table`` or ``default``."""
    candidates = [("table", setting.key, table.get(setting.key))]
    if setting.env:
        candidates.insert(0, ("environment", setting.env, environ.get(setting.env)))
    for source, name, text in candidates:
        if text is None:
            continue
        try:
            return setting.parse(text), source
        except ValueError as problem:
            warn(f"{name}={text!r} is ignored: {problem}")
    return setting.default, "default"


def busy_timeout_ms(environ: Mapping[str, str], warn: Callable[[str], None]) -> int:
    """``CAROL_BUSY_TIMEOUT_MS``: how long to wait for the write lock, in milliseconds."""
    text = environ.get("CAROL_BUSY_TIMEOUT_MS")
    if text is None:
        return DEFAULT_BUSY_TIMEOUT_MS
    try:
        return whole_number(text)
    except ValueError as problem:
        warn(f"CAROL_BUSY_TIMEOUT_MS={text!r} is ignored: {problem}")
        return DEFAULT_BUSY_TIMEOUT_MS


def launcher(environ: Mapping[str, str], warn: Callable[[str], None]) -> str:
    """``CAROL_LAUNCHER``: auto, systemd or process."""
    chosen = environ.get("CAROL_LAUNCHER", "auto")
    if chosen not in LAUNCHERS:
        warn(f"CAROL_LAUNCHER={chosen!r} is ignored: not one of {', '.join(LAUNCHERS)}")
        return "auto"
    return chosen
