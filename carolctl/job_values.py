"""What a person says of a job, as text, and what it means: every value checked where it enters, its field named.

Incident: a job with a mistyped endpoint was accepted, and the mistake was found by the first failed run at three in
the morning. Decision: whatever can be checked without leaving the process is checked before anything is written.
Consequence: a stored job can be launched, and a refusal says which option to mend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

from carolctl.errors import UsageError
from carolctl.http_rules import FRAMING_HEADERS, HEADER_NAME, HEADER_VALUE, METHODS, OWN_HEADERS
from carolctl.model import Action, CatchUp, CommandAction, DstRule, HttpAction, Overlap, ScheduleKind
from carolctl.said import Said

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CLEAR = "none"
"""The word that takes an optional value away again."""

PAYLOAD_CAP_BYTES = 256 * 1024
PAYLOAD_CAP_DEPTH = 32
_ARGV_CAP_BYTES = 128 * 1024
_URL_CAP = 2048
_MAX_SPREAD_SEC = 86_400

_RESERVED_HEADERS = FRAMING_HEADERS | OWN_HEADERS | {"host"}
_SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token"}
_REFERENCES = ("${env:", "${file:")
_HIDDEN = "[redacted]"


def check_job_id(text: str) -> str:
    """`text`, if it can be the id of a job."""
    if not JOB_ID.fullmatch(text):
        raise UsageError(
            f"{text[:80]!a} cannot be the id of a job",
            field="job_id",
            hint="up to 64 letters, digits, dots, dashes and underscores, the first one a letter or digit",
        )
    return text


# -- the columns that are one value each -----------------------------------------------------------------------

_Parse = Callable[[str, str], Any]


def columns(said: Said) -> dict[str, Any]:
    """The columns that were spoken of, by name, without the schedule's expression and the action."""
    values = {
        column: parse(text, field)
        for field, (column, parse) in _COLUMNS.items()
        if (text := getattr(said, field)) is not None
    }
    switches = {"idempotent": said.idempotent, "may_schedule": said.may_schedule}
    return values | {name: value for name, value in switches.items() if value is not None}


def _integer(least: int, most: int) -> _Parse:
    def parse(text: str, field: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,12}", text.strip()) or not least <= int(text) <= most:
            raise UsageError(f"{text[:40]!a} is not a whole number from {least} to {most}", field=field)
        return int(text)

    return parse


def _one_of(choices: Sequence[str]) -> _Parse:
    def parse(text: str, field: str) -> str:
        if text not in choices:
            raise UsageError(f"{text[:40]!a} is not one of {', '.join(choices)}", field=field)
        return text

    return parse


def _clearable(parse: _Parse, cleared: Any = None) -> _Parse:
    return lambda text, field: cleared if text.strip() in ("", CLEAR) else parse(text, field)


def _duration(text: str, field: str) -> int:
    from carolctl.schedule import parse_duration

    return parse_duration(text, field=field)


def _spread(text: str, field: str) -> int:
    seconds = 0 if text.strip() == "0" else _duration(text, field)
    if seconds > _MAX_SPREAD_SEC:
        raise UsageError(f"{text[:40]!a} is more than a day", field=field)
    return seconds


def _line(text: str, field: str) -> str:
    if not text.isprintable() or len(text) > 200:
        raise UsageError("must be one line of at most 200 printable characters", field=field)
    return text


def _prose(text: str, field: str) -> str:
    if not _storable(text) or len(text) > 4000:
        raise UsageError("must be at most 4000 characters of proper Unicode", field=field)
    return text


def _storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _handler(text: str, field: str) -> str:
    if not JOB_ID.fullmatch(text):
        raise UsageError(f"{text[:80]!a} cannot be the id of a job", field=field)
    return text


def reason(text: str) -> str:
    """`text`, if it can stand as the reason of a change."""
    return str(_line(text, "reason"))


#: By option: its column, and how text becomes its value.
_COLUMNS: dict[str, tuple[str, _Parse]] = {
    "timezone": ("timezone", lambda text, _: text.strip()),
    "dst_rule": ("dst_rule", _one_of(get_args(DstRule))),
    "spread": ("spread_sec", _clearable(_spread, 0)),
    "project": ("project", _clearable(_line)),
    "description": ("description", _clearable(_prose)),
    "priority": ("priority", _integer(-100, 100)),
    "overlap": ("overlap", _one_of(get_args(Overlap))),
    "catch_up": ("catch_up", _one_of(get_args(CatchUp))),
    "misfire_grace": ("misfire_grace_sec", _clearable(_duration)),
    "max_run_duration": ("max_run_duration_sec", _clearable(_duration)),
    "max_turns": ("max_turns", _clearable(_integer(1, 1_000_000_000))),
    "max_attempts": ("max_attempts", _integer(1, 100)),
    "agent_profile": ("agent_profile", _clearable(_line)),
    "on_failure": ("on_failure", _clearable(_handler)),
}


# -- the schedule ----------------------------------------------------------------------------------------------


def spoken_schedule(said: Said) -> tuple[ScheduleKind, str] | None:
    """The kind and the expression; None when none was given."""
    given: list[tuple[ScheduleKind, str | None]] = [
        ("cron", said.cron),
        ("daily_at", said.daily_at),
        ("every", said.every),
        ("at", said.at),
        ("manual", "" if said.manual else None),
    ]
    chosen = [(kind, expr) for kind, expr in given if expr is not None]
    if len(chosen) > 1:
        names = " and ".join(kind for kind, _ in chosen)
        raise UsageError(f"a job has one schedule, not {names}", field=chosen[1][0])
    return chosen[0] if chosen else None


# -- the action ------------------------------------------------------------------------------------------------


def spoken_action(said: Said, before: Action | None) -> Action | None:
    """The action; what is not said of an HTTP call stays as in `before`. None when nothing was said."""
    http = {name: value for name in _HTTP if (value := getattr(said, name))}
    of_commands = [name for name in _OF_COMMANDS if getattr(said, name) is not None]
    if (said.argv or of_commands) and http:
        raise UsageError(f"a job makes a call or runs a command, not both: {', '.join(http)}", field="argv")
    if said.argv or (of_commands and isinstance(before, CommandAction)):
        return _command(said, before if isinstance(before, CommandAction) else None)
    if of_commands:
        hint = "${env:NAME} of a call comes from the tick's environment, ${file:PATH} from a file"
        raise UsageError("is for a job with a command", field=of_commands[0], hint=hint)
    if not http:
        return None
    if said.url is None and not isinstance(before, HttpAction):
        raise UsageError("is for a job with --url", field=next(iter(http)))
    return _http(said, before if isinstance(before, HttpAction) else HttpAction(url=""))


_HTTP = ("url", "method", "header", "payload")


def _command(said: Said, before: CommandAction | None) -> CommandAction:
    argv = _argv(said.argv) if said.argv else before.argv if before else ()
    spoken = {
        name: check(value, name)
        for name, check in _OF_COMMANDS.items()
        if (value := getattr(said, name)) is not None
    }
    return replace(before or CommandAction(argv=argv), argv=argv, **spoken)


def _argv(argv: list[str]) -> tuple[str, ...]:
    if not argv[0].strip() or any("\0" in word for word in argv):
        raise UsageError("the command is empty", field="argv", hint="-- PROGRAM ARGUMENT...")
    if sum(len(word.encode(errors="surrogateescape")) + 1 for word in argv) > _ARGV_CAP_BYTES:
        raise UsageError(f"longer than {_ARGV_CAP_BYTES // 1024} KiB in all", field="argv")
    return tuple(argv)


def _matching(pattern: str, what: str) -> _Parse:
    def parse(text: str, field: str) -> str:
        if not re.fullmatch(pattern, text):
            raise UsageError(f"{text[:80]!a} is not {what}", field=field)
        return text

    return parse


_path = _matching(r"/[^\x00-\x1f\x7f]{0,1000}", "an absolute path")


def _memory(text: str, field: str) -> str:
    size = str(_matching(r"[1-9][0-9]{0,14}[KMGT]?|[1-9][0-9]?%", "a size such as 512M")(text, field))
    if (
        not size.endswith("%")
        and int(size.rstrip("KMGT")) * _UNITS[size.lstrip("0123456789")] < _LEAST_MEMORY
    ):
        raise UsageError("less than 64M: the hooks of its unit live in it as well", field=field)
    return size


def _quota(text: str, field: str) -> str:
    if int(_matching(r"[1-9][0-9]{0,5}%", "a share such as 50%")(text, field)[:-1]) < _LEAST_QUOTA:
        raise UsageError("less than 5%: the hooks of its unit live on it as well", field=field)
    return text


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LEAST_MEMORY = 64 * 2**20
_LEAST_QUOTA = 5

_credential = _matching(r"[A-Za-z0-9_.-]{1,200}:/[^\x00-\x1f\x7f]{1,1000}", "ID:/PATH")


def _credentials(lines: list[str], field: str) -> tuple[str, ...]:
    return () if lines == [CLEAR] else tuple(_credential(line, field) for line in lines)


#: By option of a command: what its words become.
_OF_COMMANDS: dict[str, Callable[[Any, str], Any]] = {
    "run_as": _clearable(_matching(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?|[0-9]{1,9}", "the name of a user")),
    "working_directory": _clearable(_path),
    "environment_file": _clearable(_path),
    "load_credential": _credentials,
    "memory_max": _clearable(_memory),
    "cpu_quota": _clearable(_quota),
    "sandbox": lambda value, _: value,
}


def _http(said: Said, before: HttpAction) -> HttpAction:
    return HttpAction(
        url=before.url if said.url is None else check_url(said.url),
        method=before.method if said.method is None else _one_of(METHODS)(said.method.upper(), "method"),
        headers=before.headers if not said.header else _headers(said.header),
        payload=before.payload if said.payload is None else parse_payload(said.payload),
    )


def check_url(url: str) -> str:
    """`url`, if a request can go there: http or https, a host, no credentials."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        # A reference may stand for the host; it is looked up at the launch.
        by_reference = any(mark in parts.netloc for mark in _REFERENCES)
        host = parts.netloc if by_reference else parts.hostname if parts.port != 0 else None
    except ValueError:
        host = None
    if (
        not host
        or parts.scheme not in ("http", "https")
        or not re.fullmatch(r"[^\s\x00-\x1f\x7f-\x9f]+", url)
    ):
        raise UsageError(f"{url[:80]!a} is not an http or https URL with a host", field="url")
    if "@" in parts.netloc:
        raise UsageError(
            "credentials do not belong in a URL",
            field="url",
            hint="--header 'Authorization: Bearer ${env:TOKEN}' keeps them out of the database",
        )
    if len(url) > _URL_CAP or not _storable(url):
        raise UsageError(f"longer than {_URL_CAP} characters, or not proper Unicode", field="url")
    return url


def _headers(lines: list[str]) -> dict[str, str]:
    if lines == [CLEAR]:
        return {}
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        _check_header(name, colon, value)
        headers[name] = value.strip(" \t")
    return headers


def _check_header(name: str, colon: str, value: str) -> None:
    if not colon or not HEADER_NAME.fullmatch(name):
        raise UsageError(f"{name[:80]!a} is not 'Name: value'", field="header")
    if name.lower() in _RESERVED_HEADERS:
        raise UsageError(f"{name} is set by the program itself", field="header")
    if not HEADER_VALUE.fullmatch(value):
        raise UsageError(f"the value of {name} holds a line break or a character not allowed", field="header")


def parse_payload(text: str) -> Any:
    """The JSON value of `text`, within the caps on size and depth; the word ``none`` is null."""
    if text == CLEAR:
        return None
    if len(text.encode(errors="surrogatepass")) > PAYLOAD_CAP_BYTES:
        raise UsageError(f"larger than {PAYLOAD_CAP_BYTES // 1024} KiB", field="payload")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise UsageError(f"nested deeper than {PAYLOAD_CAP_DEPTH}", field="payload") from None
    except ValueError as problem:
        raise UsageError(f"not JSON: {problem}", field="payload") from None
    if _deeper_than(value, PAYLOAD_CAP_DEPTH):
        raise UsageError(f"nested deeper than {PAYLOAD_CAP_DEPTH}", field="payload")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _deeper_than(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        return False
    return depth == 0 or any(_deeper_than(item, depth - 1) for item in inner)


# -- secrets ---------------------------------------------------------------------------------------------------


def literal_secrets(action: Action) -> list[str]:
    """The headers that carry a secret as it is, instead of a reference to it."""
    if not isinstance(action, HttpAction):
        return []
    return [
        name
        for name, value in action.headers.items()
        if name.lower() in _SECRET_HEADERS and not any(mark in value for mark in _REFERENCES)
    ]


def showable(action: Action) -> Action:
    """`action` as it may be listed and logged: without secrets that were written down literally."""
    hidden = dict.fromkeys(literal_secrets(action), _HIDDEN)
    if not hidden or not isinstance(action, HttpAction):
        return action
    return HttpAction(
        url=action.url, method=action.method, headers=action.headers | hidden, payload=action.payload
    )
