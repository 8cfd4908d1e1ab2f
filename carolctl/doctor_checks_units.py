"""The doctor's checks of the installed units: are they this version's, switched on, punctual, and do they stay on?

Where systemd does not run, or nobody installed units, there is nothing to find: cron and people may tick as well.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from carolctl import clock, installed_units, places, service_calls, timers_install, unit_files
from carolctl.doctor_checks import Evidence, Finding, age_words, fail, named, ok, skipped, warn
from carolctl.errors import CarolError
from carolctl.launch import service_manager
from carolctl.model import Millis
from carolctl.unit_files import ENABLED, Scope

_AGAIN = "carolctl install-timers"
_TIMER = "carolctl-tick.timer"
_LATE_MS = 90_000
_NIGHTLY = "carolctl-nightly.service"
#: Two nights, and what a timer may be late.
_OLD_BACKUP_MS = 50 * 3_600_000
_COARSE_USEC = 1_000_000
_BOOTED = "/run/systemd/system"


def units(_: Evidence) -> Finding:
    """Whether the unit files are all there, and this version's."""
    scope = _scope()
    if scope is None:
        return _nothing()
    there = unit_files.installed(scope)
    try:
        wanted = unit_files.render(timers_install.planned(scope))
    except CarolError as problem:
        return fail(problem.message, problem.hint)
    in_the_way = unit_files.foreign(scope)
    missing = [name for name in wanted if name not in there]
    other = [name for name in there if wanted.get(name) != there[name]]
    figures = {"scope": scope, "missing": missing, "different": other, "foreign": in_the_way}
    if in_the_way:
        detail = f"not made by carolctl, where its own belong: {named(in_the_way)}"
        return fail(detail, f"move them away, then {_AGAIN}", **figures)
    if missing:
        return fail(f"missing: {named(missing)}", _AGAIN, **figures)
    if other:
        hint = f"{_AGAIN}; changes of yours belong into drop-ins"
        return warn(f"not as this installation would make them: {named(other)}", hint, **figures)
    return ok(f"{len(there)} in {installed_units.folder(scope)}", **figures)


def timers(evidence: Evidence) -> Finding:
    """Whether they are switched on, fire as often and as punctually as shipped, and are heard."""
    scope = _scope()
    if scope is None:
        return _nothing()
    state = {name: _state(scope, name) for name in ENABLED}
    if not any(one.known for one in state.values()):
        return skipped(f"the {scope} service manager does not answer")
    off = [name for name, one in state.items() if not one.active]
    disabled = [name for name, one in state.items() if not one.enabled]
    figures = {"scope": scope, "off": off, "disabled": disabled, **_fires(scope)}
    if off:
        return fail(f"not running: {named(off)}", _AGAIN, **figures)
    if disabled:
        return warn(f"not enabled, gone after the next boot: {named(disabled)}", _AGAIN, **figures)
    accuracy = figures["accuracy_usec"]
    if isinstance(accuracy, int) and accuracy > _COARSE_USEC:
        detail = f"{_TIMER} may be {accuracy / 1e6:g} s late (AccuracySec=)"
        return warn(detail, "is there a drop-in? systemctl cat shows it", **figures)
    return _heard(evidence, figures)


def linger(_: Evidence) -> Finding:
    """Whether a user's timers go on when the user logs out."""
    if _scope() != "user":
        return skipped("no units of a user's own")
    if service_calls.lingers(os.geteuid()):
        return ok("the timers run without a login")
    return warn("the timers, and the jobs, stop when you log out", "loginctl enable-linger")


def backups(evidence: Evidence) -> Finding:
    """Whether the nightly backup has been getting through, where it is installed."""
    scope = _scope()
    if scope is None:
        return _nothing()
    # Of the units' own store, whichever one is examined.
    home = installed_units.setting(scope, "CAROL_DATA_DIR") or places.data_home()
    made = _newest_backup_ms(os.path.join(home, "backups"))
    # A new installation has not had a night yet.
    since = made or _modified_ms(os.path.join(installed_units.folder(scope), _NIGHTLY))
    age = max(0, evidence.place.now - since) if since else 0
    detail = f"the newest was made {age_words(age)} ago" if made else "there is none yet"
    figures = {"newest": clock.iso(made), "age_sec": age // 1000 if made else None}
    if age <= _OLD_BACKUP_MS:
        return ok(detail, **figures)
    option = "--user-unit" if scope == "user" else "--unit"
    return warn(detail, f"journalctl {option}={_NIGHTLY} says why; carolctl backup makes one", **figures)


def _newest_backup_ms(folder: str) -> Millis | None:
    try:
        names = [name for name in os.listdir(folder) if name.startswith("carolctl-") and name.endswith(".db")]
    except OSError:
        return None
    moments = [moment for name in names if (moment := _modified_ms(os.path.join(folder, name)))]
    return max(moments, default=None)


def _modified_ms(path: str) -> Millis | None:
    try:
        return Millis(round(os.stat(path).st_mtime * 1000))
    except OSError:
        return None


def _heard(evidence: Evidence, figures: dict[str, object]) -> Finding:
    """A timer that fires is not enough: the tick has to get through."""
    try:
        age = evidence.place.now - round(os.stat(places.tick_stamp()).st_mtime * 1000)
    except OSError:
        return ok("on; no tick yet", **figures)
    if age > _LATE_MS and figures["fired"]:
        hint = f"journalctl -u {installed_units.TICK} (--user-unit for a user's)"
        return warn(f"the timer is on, and the last tick was {age_words(age)} ago", hint, **figures)
    return ok(f"on; the last tick {age_words(max(age, 0))} ago", **figures)


def _scope() -> Scope | None:
    """Whose units serve this user: root's are the system's."""
    candidates: tuple[Scope, ...] = ("system", "user") if os.geteuid() == 0 else ("user",)
    return next((scope for scope in candidates if unit_files.installed(scope)), None)


def _nothing() -> Finding:
    if not os.path.isdir(_BOOTED):
        return skipped("systemd does not run here")
    return skipped(f"none are installed; {_AGAIN} does it")


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    known: bool
    active: bool
    enabled: bool


def _state(scope: Scope, unit: str) -> _State:
    shown = service_manager.properties(scope, unit, "ActiveState", "UnitFileState")
    return _State(
        known=bool(shown),
        active=shown.get("ActiveState") == "active",
        enabled=shown.get("UnitFileState", "").startswith("enabled"),
    )


def _fires(scope: Scope) -> dict[str, object]:
    shown = service_manager.properties(scope, _TIMER, "AccuracyUSec", "LastTriggerUSec")
    accuracy = shown.get("AccuracyUSec", "")
    return {
        "accuracy_usec": _microseconds(accuracy),
        "fired": shown.get("LastTriggerUSec", "") not in ("", "n/a"),
    }


def _microseconds(text: str) -> int | None:
    """``1s``, ``500ms``, ``1min``: one number with its unit; None for anything longer."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    sizes = {"us": 1, "ms": 1000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000}
    size = sizes.get(text[len(number) :])
    return int(number) * size if size and number.isdigit() else None
