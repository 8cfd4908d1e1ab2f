"""The look that ends most ticks: is there anything to do at all?

Half of a tick's life is imports, so this comes before all of them: three modules, one connection, one statement;
one of each more where a planner database is given. Whenever anything is unusual it does not answer, and the whole
tick runs and deals with it.
"""

import os
import sqlite3
import time

from carolctl.places import planner_db, scheduler_db, spool, tick_stamp
from carolctl.store import APPLICATION_ID, SCHEMA_VERSION

STAMP_STALE_SEC = 90
WATERMARK_AHEAD_MS = 26 * 3600 * 1000

_QUIET = """
SELECT (SELECT user_version FROM pragma_user_version) = :version
   AND (SELECT application_id FROM pragma_application_id) = :application
   AND NOT EXISTS (SELECT 1 FROM scheduled_jobs WHERE status = 'active' AND next_fire_at <= :now)
   AND NOT EXISTS (SELECT 1 FROM scheduled_jobs WHERE status = 'active' AND last_scheduled_for > :ahead)
   AND NOT EXISTS (SELECT 1 FROM runs WHERE completed_at IS NULL)
   AND NOT EXISTS (SELECT 1 FROM ledger_outbox)
   AND NOT EXISTS (SELECT 1 FROM meta WHERE key = 'paused_until'
                      AND (value GLOB '*[^0-9]*' OR CAST(value AS INTEGER) > :now))
   AND (:mirrored = 0 OR EXISTS (SELECT 1 FROM meta WHERE key = 'ledger' AND value = 'on')),
       (SELECT value FROM settings WHERE key = 'reap.orphan_threshold_min')
"""

#: Whether every running row of the ledger is surely younger than the threshold: UTC text, ISO 8601 with Z, or
#: epoch seconds, as a number or in digits. What is in doubt is for the whole tick.
_ALL_YOUNG = """
SELECT NOT EXISTS (
  SELECT 1 FROM droid_runs
   WHERE status = 'running'
     AND NOT coalesce(CASE
       WHEN typeof(started_at) IN ('integer', 'real') THEN started_at BETWEEN :oldest AND :newest
       WHEN typeof(started_at) <> 'text' THEN 0
       WHEN started_at NOT GLOB '*[^0-9]*' THEN CAST(started_at AS INTEGER) BETWEEN :oldest AND :newest
       WHEN started_at NOT GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9][ T][0-9][0-9]:[0-9][0-9]:[0-9][0-9]*' THEN 0
       WHEN substr(started_at, 20) NOT IN ('', 'Z', '+00:00') THEN 0
       ELSE replace(substr(started_at, 1, 19), 'T', ' ') BETWEEN :oldest_text AND :newest_text
     END, 0))
"""
_DEFAULT_THRESHOLD_MIN = "30"


def answer_idle_tick(options: list[str]) -> None:
    """Answer ``tick`` with these options and end the process, if there is nothing to do; else return."""
    if options not in ([], ["--json"]) or "CAROL_NOW" in os.environ or "CAROL_FAILPOINT" in os.environ:
        return
    began = time.perf_counter()
    now = time.time()
    if not (_stamp_is_fresh(now) and _spool_is_empty() and _databases_are_quiet(now)):
        return
    try:
        os.utime(tick_stamp(), (now, now))
    except OSError:
        # A file system that became read-only, somebody else's folder: the whole tick has the words for it.
        return
    try:
        os.write(1, _report(options, (time.perf_counter() - began) * 1000))
    except BrokenPipeError:
        os._exit(128 + 13)
    except OSError:
        # The whole tick has the words for it; it finds nothing to do once more.
        return
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


def _databases_are_quiet(now: float) -> bool:
    planner = planner_db()
    now_ms = int(now * 1000)
    try:
        quiet, threshold = (
            _connect(scheduler_db(), "rw")
            .execute(
                _QUIET,
                {
                    "version": SCHEMA_VERSION,
                    "application": APPLICATION_ID,
                    "now": now_ms,
                    "ahead": now_ms + WATERMARK_AHEAD_MS,
                    "mirrored": planner is not None,
                },
            )
            .fetchone()
        )
        return bool(quiet) and (planner is None or _ledger_is_young(planner, now, threshold))
    except (sqlite3.Error, OSError, ValueError, OverflowError):
        return False


def _connect(path: str, mode: str) -> sqlite3.Connection:
    # No waiting here: whoever holds the database off now is for the whole tick and its deadline.
    return sqlite3.connect(f"file:{_quoted(path)}?mode={mode}", uri=True, isolation_level=None, timeout=0)


def _ledger_is_young(planner: str, now: float, stored_threshold: str | None) -> bool:
    threshold = os.environ.get("ORPHAN_THRESHOLD_MIN", stored_threshold or _DEFAULT_THRESHOLD_MIN)
    if not (threshold.isascii() and threshold.isdigit()):
        return False
    from carolctl.store.side_files import may_be_left_beside

    if not may_be_left_beside(planner):
        return False
    # A second of distance, since the look cuts off fractions; and nothing from the far future, which is in doubt.
    oldest, newest = int(now) - 60 * int(threshold) + 1, int(now) + 86_400
    row = (
        _connect(planner, "ro")
        .execute(
            _ALL_YOUNG,
            {
                "oldest": oldest,
                "newest": newest,
                "oldest_text": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(oldest)),
                "newest_text": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(newest)),
            },
        )
        .fetchone()
    )
    return bool(row[0])


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
