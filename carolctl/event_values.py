"""What an event may say: its id, its kind, its turns, its data. Pure, and light: `emit` has no time for imports."""

MAX_BYTES = 64 * 1024
"""The largest file that the spool takes."""

MAX_TURNS = 2**53 - 1
"""Beyond it a number is no longer exact everywhere that JSON goes."""

MAX_ID = 2**62 - 1
"""The largest run id or claim number that is believed."""

_DEEPEST = 32
_SMALL = frozenset("abcdefghijklmnopqrstuvwxyz")
_LETTERS = _SMALL | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_ID_LENGTH, _KIND_LENGTH = 64, 32


def is_event_id(text: str) -> bool:
    """A letter or digit, then up to 63 letters, digits, ``.``, ``_`` or ``-``."""
    return 0 < len(text) <= _ID_LENGTH and text[0] in _LETTERS and (_LETTERS | {*"._-"}).issuperset(text)


def is_event_kind(text: str) -> bool:
    """A small letter, then up to 31 small letters, digits, ``.``, ``_`` or ``-``."""
    allowed = _SMALL | {*"0123456789._-"}
    return 0 < len(text) <= _KIND_LENGTH and text[0] in _SMALL and allowed.issuperset(text)


def is_shallow(value: object, levels: int = _DEEPEST) -> bool:
    """Whether lists and objects are nested no deeper than 32: whoever reads it later has a stack of his own."""
    if not isinstance(value, (dict, list)):
        return True
    members = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(is_shallow(member, levels - 1) for member in members)
