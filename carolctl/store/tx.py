"""The two capabilities: what a snapshot may be asked, and what a write transaction may do besides."""

from __future__ import annotations

import sqlite3

from carolctl.store.events import EventReads, EventWrites
from carolctl.store.evidence import EvidenceReads
from carolctl.store.jobs import JobReads, JobWrites
from carolctl.store.records import RecordReads, RecordWrites
from carolctl.store.runs import RunReads, RunWrites


class ReadTx(JobReads, RunReads, EventReads, RecordReads, EvidenceReads):
    """One snapshot; made by `Store.read` alone."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection


class WriteTx(JobWrites, RunWrites, EventWrites, RecordWrites, ReadTx):
    """One write transaction; made by `Store.write` alone. Verbs that return bool are compare-and-swaps."""

    def __init__(self, connection: sqlite3.Connection, *, mirrored: bool = False) -> None:
        super().__init__(connection)
        self._mirrored = mirrored
