"""The look that ends most ticks: is there anything to do at all?

Half of a tick's life is imports, so this comes before all of them: three modules, one connection, one statement.
Whenever anything is unusual it does not answer, and the whole tick runs and deals with it.
"""

import os
import sqlite3
import time

from carolctl.places import scheduler_db, spool, tick_stamp
from carolctl.store import APPLICATION_ID, SCHEMA_VERSION

STAMP_STALE_SEC = 90
WATERMARK_AHEAD_MS = 26 * 3600 * 1000

_QUIET = """
SELECT (SELECT user_version FROM pragma_user_version) = :version
   AND (SELECT application_id FROM pragma_application_id) = :application
   AND NOT EXISTS (SELECT 1 FROM scheduled_jobs WHERE status = 'active' AND next_fire_at <= :now)
   AND NOT EXISTS (SELECT 1 FROM scheduled_jobs WHERE status = 'active' AND last_scheduled_for > :ahead)
   AND NOT EXISTS (SELECT 1 FROM runs WHERE status IN ('queued', 'claimed', 'running'))
   AND NOT EXISTS (SELECT 1 FROM ledger_outbox)
   AND NOT EXISTS (SELECT 1 FROM meta WHERE key = 'paused_until'
                      AND (value GLOB '*[^0-9]*' OR CAST(value AS INTEGER) > :now))
"""


def answer_idle_tick(options: list[str]) -> None:
    """Answer ``tick`` with these options and end the process, if there is nothing to do; else return."""
    if options not in ([], ["--json"]) or "CAROL_NOW" in os.environ or "CAROL_FAILPOINT" in os.environ:
        return
    began = time.perf_counter()
    now = time.time()
    if not (_stamp_is_fresh(now) and _spool_is_empty() and _store_is_quiet(int(now * 1000))):
        return
    os.utime(tick_stamp(), (now, now))
    os.write(1, _report(options, (time.perf_counter() - began) * 1000))
    # The connection is left open: closing the last one of a WAL database checkpoints it, five fsyncs more.
    os._exit(0)


def _report(options: list[str], elapsed_ms: float) -> bytes:
    if not options:
        return b"nothing to do\n"
    return (
        b'{"paused": false, "reaped": [], "orphans": [], "deferred": [], "skipped": [], "fired": [], '
        b'"claimed": [], "launched": [], "queued": 0, "running": 0, "ledger": {"written": 0, "pending": 0}, '
        b'"write_lock_ms": 0.0, "elapsed_ms": %.3f}\n' % elapsed_ms
    )


def _stamp_is_fresh(now: float) -> bool:
    try:
        age = now - os.stat(tick_stamp()).st_mtime
    except OSError:
        return False
    return 0 <= age <= STAMP_STALE_SEC


def _spool_is_empty() -> bool:
    try:
        return not os.listdir(os.path.join(spool(), "new"))
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _store_is_quiet(now_ms: int) -> bool:
    try:
        # No waiting here: whoever holds the database off now is for the whole tick and its deadline.
        connection = sqlite3.connect(
            f"file:{_quoted(scheduler_db())}?mode=rw", uri=True, isolation_level=None, timeout=0
        )
        row = connection.execute(
            _QUIET,
            {
                "version": SCHEMA_VERSION,
                "application": APPLICATION_ID,
                "now": now_ms,
                "ahead": now_ms + WATERMARK_AHEAD_MS,
            },
        ).fetchone()
    except (sqlite3.Error, UnicodeError):
        return False
    return bool(row[0])


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
