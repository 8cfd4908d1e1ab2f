"""Secrets by reference: ``${env:NAME}`` and ``${file:PATH}``, looked up at the moment of a launch.

Incident: a token typed into a job's header sat in the database, in its backups, in every listing and in
the log of every failed call; taking it back meant a search through all of them. Decision: what is stored is
a reference, and a `Resolver` turns it into its value only in the process that sends it, remembering each
value it gave out. Consequence: whatever is written down afterwards goes through `redact` with those values,
and an error about a reference names the reference, never what it stands for.

One pass, no nesting: a value that happens to contain ``${env:...}`` stays as it is. ``$${`` writes a plain
``${``; any other ``${...}`` is not ours and is left alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from carolctl.errors import BadConfig
from carolctl.lockguard import require_unlocked

FILE_CAP_BYTES = 64 * 1024
"""A secret file larger than this is taken for a mistake."""

SHORTEST_REDACTED = 4
"""Shorter values would blot out ordinary words and digits."""

SHORTEST_LINE_REDACTED = 8
"""The same for one line of a secret of several."""

REDACTED = "[redacted]"

_REFERENCE = re.compile(r"(?P<escape>\$\$\{)|\$\{(?P<kind>env|file):(?P<name>[^}]*)(?P<end>\}?)")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Resolver:
    """Resolves references and remembers every value it gave out, for `redact`."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self.secrets: set[str] = set()

    def resolve(self, text: str) -> str:
        """`text` with every reference replaced by its value; `BadConfig` when one cannot be."""
        return _REFERENCE.sub(self._replacement, text)

    def resolve_document(self, value: Any) -> Any:
        """The same for every string value inside a JSON document; the keys are left alone."""
        if isinstance(value, str):
            return self.resolve(value)
        if isinstance(value, list):
            return [self.resolve_document(item) for item in value]
        if isinstance(value, dict):
            return {key: self.resolve_document(item) for key, item in value.items()}
        return value

    def redact(self, text: str) -> str:
        """`text` without any value this resolver gave out."""
        return redact(text, self.secrets)

    def _replacement(self, match: re.Match[str]) -> str:
        if match["escape"]:
            return "${"
        kind, name = match["kind"], match["name"]
        if not match["end"]:
            raise BadConfig(f"a ${{{kind}:...}} reference has no closing brace")
        value = self._variable(name) if kind == "env" else _file_text(name)
        if value:
            self.secrets.add(value)
        return value

    def _variable(self, name: str) -> str:
        if not _ENV_NAME.fullmatch(name):
            raise BadConfig(f"${{env:{name}}} does not name an environment variable")
        try:
            return self._environ[name]
        except KeyError:
            raise BadConfig(
                f"${{env:{name}}}: the variable is not set",
                hint="set it by EnvironmentFile= in the tick unit, mode 0600; any user may read Environment=",
            ) from None


def variables(value: Any) -> set[str]:
    """The names of the environment variables that the strings inside a JSON document refer to."""
    if isinstance(value, str):
        return {found["name"] for found in _REFERENCE.finditer(value) if found["kind"] == "env"}
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(variables, value)) if isinstance(value, list) else set()


def resolve(text: str) -> str:
    """`Resolver.resolve`, for a caller with nothing to redact."""
    return Resolver().resolve(text)


def resolve_document(value: Any) -> Any:
    """`Resolver.resolve_document`, for a caller with nothing to redact."""
    return Resolver().resolve_document(value)


def redact(text: str, secrets: Collection[str]) -> str:
    """`text` with each secret, in whichever of its usual spellings, replaced by ``[redacted]``."""
    spellings = {form for secret in secrets for form in _spellings(secret) if len(form) >= SHORTEST_REDACTED}
    if not spellings:
        return text
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), REDACTED, text)


def _spellings(secret: str) -> Iterator[str]:
    """As it is, line by line, and as JSON, a URL or a header line would write it."""
    import json
    from urllib.parse import quote

    yield secret
    yield secret.strip()
    yield json.dumps(secret)[1:-1]
    yield quote(secret, safe="", errors="replace")
    yield from (line for line in map(str.strip, secret.splitlines()) if len(line) >= SHORTEST_LINE_REDACTED)


def _file_text(path: str) -> str:
    require_unlocked("reading a secret file")
    if not path.startswith("/"):
        raise BadConfig(f"${{file:{path}}}: the path must be absolute")
    try:
        raw = _read_capped(path)
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadConfig(f"${{file:{path}}}: the file is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise BadConfig(f"${{file:{path}}}: {why}") from None
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting, so that a FIFO cannot hold the launch up."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _read_capped(path: str) -> bytes:
    with open(path, "rb", opener=_open_at_once) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise BadConfig(f"${{file:{path}}}: not a regular file")
        raw = stream.read(FILE_CAP_BYTES + 1)
    if len(raw) > FILE_CAP_BYTES:
        raise BadConfig(f"${{file:{path}}}: larger than {FILE_CAP_BYTES // 1024} KiB")
    return raw
