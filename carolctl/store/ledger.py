"""All SQL on ``droid_runs``, the run ledger in the legacy planner database.

Incident: that database's write lock was held across an HTTP dispatch, and everybody else starved. Decision: what
is slow, the search through a table that may have no index, is done in a read transaction; under the lock come
only updates by id, inserts, and a look at what was added since. Consequence: we hold the lock for milliseconds,
and wait for it for no longer than a `Deadline`.

Some ten other programs write there: every cell is taken as it comes, and no column but three is relied on.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from carolctl.errors import BadData, NotFound, StoreBusy
from carolctl.failpoints import failpoint
from carolctl.legacy_cells import Cell, RawText, text_cell
from carolctl.lockguard import set_write_open
from carolctl.store.connect import begin, connect, explained, rollback
from carolctl.store.rows import column_list, to_json

#: What a run is shown by there, besides `id`, which is the table's own.
COLUMNS = (
    "execution_id",
    "droid_name",
    "initiative_id",
    "event_id",
    "trigger_kind",
    "status",
    "started_at",
    "completed_at",
    "result_summary",
)
_ROW_COLUMNS = (
    "id", "status", "droid_name", "initiative_id", "event_id", "trigger_kind", "started_at", "completed_at",
    "result_summary", "pid", "pid_start",
)  # fmt: skip
_PROGRESS_STEPS = 20_000

#: What a value or a row raises that the table does not take.
_REFUSALS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError, UnicodeError)


class Deadline:
    """The moment until which everything on the other database has to be done."""

    def __init__(self, ms: int) -> None:
        self.ms = ms
        self._end = time.monotonic() + ms / 1000

    def left_ms(self) -> int:
        """Milliseconds left, at least 0."""
        return max(0, round((self._end - time.monotonic()) * 1000))

    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._end


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """A run as the ledger shows it: the cells of `COLUMNS`, and whether its state is a final one."""

    run_id: int
    cells: Mapping[str, Cell]
    is_final: bool

    @property
    def event_id(self) -> Cell:
        """The identity of the run in the ledger."""
        return self.cells["event_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRow:
    """A row of the ledger; a column that the table does not have is None."""

    id: int
    status: Cell
    droid_name: Cell
    initiative_id: Cell
    event_id: Cell
    trigger_kind: Cell
    started_at: Cell
    completed_at: Cell
    result_summary: Cell
    pid: Cell
    pid_start: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of a foreign row, for the row as it was looked at."""

    row: ForeignRow
    completed_at: Cell
    result_summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of rows: the keys of those that were written, and by key why the table refuses others."""

    done: list[int]
    refused: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where rows lie, by event id, and the highest id at the time of the look."""

    ids: dict[Cell, int]
    highest: int


@contextmanager
def opened(path: str, deadline: Deadline, *, read_only: bool = False) -> Iterator[Ledger]:
    """The ledger of the planner database at `path`.

    Raises, here and from everything done with it, `NotFound` (no such file or table), `BadData` (damaged, or a
    table of another shape), `NotPermitted`, `DiskFull`, or `StoreBusy` when the deadline is over.
    """
    mode = "ro" if read_only else "rw"
    with closing(connect(path, mode=mode, deadline_ms=deadline.left_ms())) as connection:
        connection.text_factory = text_cell
        connection.set_progress_handler(deadline.is_over, _PROGRESS_STEPS)
        with _never_raw(path), explained(path, deadline.ms), _interrupted(path, deadline):
            yield Ledger(connection, path, deadline)


@contextmanager
def _never_raw(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise BadData(f"{path}: {error}", hint="is this the planner database?") from error


@contextmanager
def _interrupted(path: str, deadline: Deadline) -> Iterator[None]:
    """A statement that was cut off by the deadline is one that came too late, not a Ctrl-C."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_INTERRUPT" or not deadline.is_over():
            raise
        raise StoreBusy(
            f"{path}: its droid_runs could not be looked through within {deadline.ms / 1000:g} s",
            hint="an index on event_id, or on status, helps",
        ) from error


class Ledger:
    """The table ``droid_runs`` of one planner database, for one short task; made by `opened` alone."""

    def __init__(self, connection: sqlite3.Connection, path: str, deadline: Deadline) -> None:
        self._connection = connection
        self._path = path
        self._deadline = deadline
        with self._snapshot():
            self._shape = _shape(connection, path)

    # -- reading, without the write lock

    def find(self, event_ids: Sequence[Cell]) -> Found:
        """The lowest id of each row with one of those event ids; it may have to look through the whole table."""
        self._require("event_id")
        with self._snapshot():
            highest = self._connection.execute("SELECT coalesce(max(id), 0) FROM droid_runs").fetchone()[0]
            rows = self._connection.execute(
                "SELECT event_id, id FROM droid_runs WHERE event_id IN (SELECT value FROM json_each(?))"
                " ORDER BY id DESC",
                (to_json(list(event_ids)),),
            ).fetchall()
        return Found(ids=dict(rows), highest=highest)

    def running(self) -> list[ForeignRow]:
        """The rows that say ``running``, ours among them, oldest first."""
        self._require("started_at")
        names = self._shape.present(_ROW_COLUMNS)
        with self._snapshot():
            rows = self._connection.execute(
                f"SELECT {column_list(names)} FROM droid_runs WHERE status = 'running' ORDER BY id"  # noqa: S608
            ).fetchall()
        return [_foreign_row(names, row) for row in rows]

    def row(self, ledger_id: int) -> ForeignRow | None:
        """The row of that id."""
        names = self._shape.present(_ROW_COLUMNS)
        with self._snapshot():
            row = self._connection.execute(
                f"SELECT {column_list(names)} FROM droid_runs WHERE id = ?",  # noqa: S608
                (ledger_id,),
            ).fetchone()
        return None if row is None else _foreign_row(names, row)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        begin(self._connection, "BEGIN DEFERRED TRANSACTION", self._deadline.left_ms())
        try:
            yield
        finally:
            rollback(self._connection)

    def _require(self, *names: str) -> None:
        missing = [name for name in names if name not in self._shape.columns]
        if missing:
            raise BadData(f"{self._path}: droid_runs has no column {', '.join(missing)}")

    # -- writing

    def publish(self, rows: Sequence[LedgerRow], found: Found) -> Written:
        """Write the present state of our runs, one row each; `found` is what `find` said about them."""
        if self._shape.unfillable:
            raise BadData(
                f"{self._path}: droid_runs wants values that we have not: {', '.join(self._shape.unfillable)}"
            )
        return self._each({row.run_id: partial(self._put, row, found) for row in rows})

    def end(self, endings: Sequence[Ending]) -> Written:
        """Rows that say ``running`` become ``failed``, unless they have changed since they were looked at."""
        self._require("started_at")
        return self._each({ending.row.id: partial(self._end, ending) for ending in endings})

    def _each(self, writes: Mapping[int, Callable[[], bool]]) -> Written:
        """Do all of `writes` in one transaction; what the table refuses steps aside.

        A trigger may roll the whole transaction back: it is begun anew then, without the culprit.
        """
        refused: dict[int, str] = {}
        done = None
        while done is None:
            done = self._attempt(writes, refused)
        return Written(done=done, refused=refused)

    def _attempt(self, writes: Mapping[int, Callable[[], bool]], refused: dict[int, str]) -> list[int] | None:
        done = []
        with self._write():
            for key, write in writes.items():
                if key in refused:
                    continue
                try:
                    if self._in_savepoint(write):
                        done.append(key)
                except (sqlite3.Error, OverflowError, UnicodeError) as problem:
                    if not _is_refusal(problem):
                        raise
                    refused[key] = str(problem)
                if not self._connection.in_transaction:
                    return None
        return done

    @contextmanager
    def _write(self) -> Iterator[None]:
        begin(self._connection, "BEGIN IMMEDIATE", self._deadline.left_ms())
        set_write_open(True)
        try:
            yield
            failpoint("ledger-before-commit")
            if self._connection.in_transaction:
                # Without a WAL a COMMIT waits for those who read.
                self._connection.execute(f"PRAGMA busy_timeout = {int(self._deadline.left_ms())}")
                self._connection.execute("COMMIT")
        finally:
            rollback(self._connection)
            set_write_open(False)

    def _in_savepoint(self, write: Callable[[], bool]) -> bool:
        self._connection.execute("SAVEPOINT one_row")
        try:
            return write()
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK TO one_row")
            raise
        finally:
            if self._connection.in_transaction:
                self._connection.execute("RELEASE one_row")

    def _put(self, row: LedgerRow, found: Found) -> bool:
        """Our row as it is now. A final state stands above any other: an older publisher may come later."""
        names = self._shape.writable(COLUMNS)
        ledger_id = self._present_id(row.event_id, found)
        if ledger_id is None:
            cursor = self._connection.execute(
                f"INSERT INTO droid_runs ({column_list(names)}) VALUES ({column_list(names, ':')})",  # noqa: S608
                row.cells,
            )
            if cursor.rowcount != 1:
                raise sqlite3.IntegrityError("the table ignores the row")
            return True
        self._connection.execute(
            f"UPDATE droid_runs SET ({column_list(names)}) = ({column_list(names, ':')})"  # noqa: S608
            " WHERE id = :id AND event_id = :event_id"
            " AND (:is_final OR coalesce(status, '') NOT IN ('completed', 'failed', 'cancelled'))",
            {**row.cells, "id": ledger_id, "is_final": row.is_final},
        )
        return True

    def _present_id(self, event_id: Cell, found: Found) -> int | None:
        """The row of that event id: where it was found, or among those that were added since."""
        row = self._connection.execute(
            "SELECT id FROM droid_runs WHERE id = :id AND event_id = :event_id"
            " UNION ALL SELECT id FROM droid_runs WHERE id > :highest AND event_id = :event_id LIMIT 1",
            {"id": found.ids.get(event_id, -1), "event_id": event_id, "highest": found.highest},
        ).fetchone()
        return row[0] if row else None

    def _end(self, ending: Ending) -> bool:
        row = ending.row
        values = {
            "status": "failed",
            "completed_at": ending.completed_at,
            "result_summary": ending.result_summary,
        }
        names = self._shape.writable(tuple(values))
        started = row.started_at.raw if isinstance(row.started_at, RawText) else row.started_at
        cursor = self._connection.execute(
            f"UPDATE droid_runs SET ({column_list(names)}) = ({column_list(names, ':')})"  # noqa: S608
            # Not the bare column: its affinity would take a number for its digits.
            " WHERE id = :id AND status = 'running'"
            " AND iif(:is_raw, CAST(started_at AS BLOB), started_at) IS :started_at",
            {**values, "id": row.id, "is_raw": isinstance(row.started_at, RawText), "started_at": started},
        )
        return cursor.rowcount == 1


# -- the shape of the table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The columns of the table, those that may be written, and those that must be and that we know nothing of."""

    columns: frozenset[str]
    computed: frozenset[str]
    unfillable: tuple[str, ...]

    def present(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.columns]

    def writable(self, names: Sequence[str]) -> list[str]:
        return [name for name in self.present(names) if name not in self.computed]


def _shape(connection: sqlite3.Connection, path: str) -> _Shape:
    made = connection.execute("SELECT type FROM sqlite_schema WHERE lower(name) = 'droid_runs'").fetchall()
    if ("table",) not in made:
        raise NotFound(f"{path} has no table droid_runs", hint="is this the planner database?")
    found = connection.execute(
        'SELECT lower(name), lower(type), pk, hidden > 0, "notnull" AND dflt_value IS NULL'
        " FROM pragma_table_xinfo('droid_runs')"
    ).fetchall()
    if ("id", "integer", 1) not in [column[:3] for column in found]:
        raise BadData(f"{path}: droid_runs has no id INTEGER PRIMARY KEY")
    if not any(name == "status" for name, *_ in found):
        raise BadData(f"{path}: droid_runs has no column status")
    return _Shape(
        columns=frozenset(name for name, *_ in found),
        computed=frozenset(name for name, _, _, computed, _ in found if computed),
        unfillable=tuple(
            str(name)
            for name, _, _, computed, needed in found
            if needed and not computed and name not in ("id", *COLUMNS)
        ),
    )


def _foreign_row(names: Sequence[str], row: Sequence[Cell]) -> ForeignRow:
    return ForeignRow(**{**dict.fromkeys(_ROW_COLUMNS), **dict(zip(names, row, strict=True))})  # type: ignore[arg-type]


def _is_refusal(error: Exception) -> bool:
    """Whether the table does not take a row, as against a database that does not answer."""
    return isinstance(error, _REFUSALS) or getattr(error, "sqlite_errorname", "") == "SQLITE_ERROR"
