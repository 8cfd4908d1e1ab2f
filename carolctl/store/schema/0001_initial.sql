-- The job store. Every instant is integer Unix milliseconds, UTC; every duration names its unit.
-- STRICT and CHECKs, so that a bug of ours is refused here instead of being believed later.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (
  key        TEXT PRIMARY KEY,
  value      TEXT NOT NULL,
  updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE scheduled_jobs (
  job_id                    TEXT PRIMARY KEY
                            CHECK (length(job_id) BETWEEN 1 AND 64
                                   AND job_id GLOB '[A-Za-z0-9]*' AND job_id NOT GLOB '*[^A-Za-z0-9._-]*'),
  project                   TEXT,
  description               TEXT,
  schedule_kind             TEXT NOT NULL CHECK (schedule_kind IN ('cron', 'daily_at', 'every', 'at', 'manual')),
  schedule_expr             TEXT NOT NULL,
  timezone                  TEXT NOT NULL DEFAULT 'UTC',
  dst_rule                  TEXT NOT NULL DEFAULT 'once' CHECK (dst_rule IN ('once', 'literal')),
  anchor_at                 INTEGER NOT NULL,
  schedule_compiled         TEXT,
  spread_sec                INTEGER NOT NULL DEFAULT 0 CHECK (spread_sec BETWEEN 0 AND 315360000),
  action_kind               TEXT NOT NULL CHECK (action_kind IN ('http', 'command')),
  action                    TEXT NOT NULL CHECK (json_valid(action)),
  status                    TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused')),
  paused_reason             TEXT,
  priority                  INTEGER NOT NULL DEFAULT 0,
  overlap                   TEXT NOT NULL DEFAULT 'skip' CHECK (overlap IN ('skip', 'queue', 'allow')),
  catch_up                  TEXT NOT NULL DEFAULT 'latest' CHECK (catch_up IN ('latest', 'all', 'skip')),
  misfire_grace_sec         INTEGER CHECK (misfire_grace_sec BETWEEN 0 AND 315360000),
  max_run_duration_sec      INTEGER CHECK (max_run_duration_sec BETWEEN 1 AND 315360000),
  max_turns                 INTEGER CHECK (max_turns > 0),
  max_turns_set_at          INTEGER,
  max_attempts              INTEGER NOT NULL DEFAULT 1 CHECK (max_attempts >= 1),
  idempotent                INTEGER NOT NULL DEFAULT 0 CHECK (idempotent IN (0, 1)),
  agent_profile             TEXT,
  on_failure                TEXT,
  next_fire_at              INTEGER,
  schedule_rev              INTEGER NOT NULL DEFAULT 1,
  last_scheduled_for        INTEGER NOT NULL,
  deferred_at               INTEGER,
  last_fired_at             INTEGER,
  last_run_id               INTEGER,
  last_status               TEXT,
  last_failure_reason       TEXT,
  firing_count              INTEGER NOT NULL DEFAULT 0,
  suppression_count         INTEGER NOT NULL DEFAULT 0,
  failure_streak            INTEGER NOT NULL DEFAULT 0,
  turn_budget_breach_streak INTEGER NOT NULL DEFAULT 0,
  lease_drift_streak        INTEGER NOT NULL DEFAULT 0,
  last_turn_count           INTEGER,
  avg_turns_per_firing      REAL,
  legacy                    TEXT CHECK (legacy IS NULL OR json_valid(legacy)),
  created_at                INTEGER NOT NULL,
  updated_at                INTEGER NOT NULL
) STRICT;

-- What a tick asks first: who is due? Partial, so that paused jobs cost nothing.
CREATE INDEX scheduled_jobs_due ON scheduled_jobs (next_fire_at) WHERE status = 'active';
-- What it asks second: does a watermark lie far ahead of the clock?
CREATE INDEX scheduled_jobs_watermark ON scheduled_jobs (last_scheduled_for) WHERE status = 'active';

-- Chains of OR: an IN of more than two makes a table of its own each time a row is written. There were five of
-- them, and they took eight times as long as all the rest of ending a run.
CREATE TABLE runs (
  run_id              INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id              TEXT NOT NULL,
  source              TEXT NOT NULL CHECK (
                        source = 'scheduled' OR source = 'manual' OR source = 'event'),
  scheduled_for       INTEGER,
  slots_from          INTEGER,
  coalesced           INTEGER NOT NULL DEFAULT 1 CHECK (coalesced >= 1),
  schedule_rev        INTEGER,
  status              TEXT NOT NULL CHECK (
                        status = 'queued' OR status = 'claimed' OR status = 'running' OR
                        status = 'completed' OR status = 'failed' OR status = 'skipped' OR
                        status = 'cancelled'),
  failure_reason      TEXT CHECK (
                        failure_reason = 'turn_limit_exceeded' OR failure_reason = 'aborted' OR failure_reason = 'timeout' OR
                        failure_reason = 'budget_exceeded' OR failure_reason = 'auth_failed' OR failure_reason = 'rate_limited' OR
                        failure_reason = 'lease_expired' OR failure_reason = 'process_lost' OR failure_reason = 'launch_failed' OR
                        failure_reason = 'out_of_memory' OR failure_reason = 'http_error' OR failure_reason = 'exit_nonzero' OR
                        failure_reason = 'killed' OR failure_reason = 'outcome_unknown' OR failure_reason = 'sdk_error'),
  skip_reason         TEXT CHECK (
                        skip_reason = 'overlap' OR skip_reason = 'misfire' OR skip_reason = 'missed' OR
                        skip_reason = 'catch_up_limit' OR skip_reason = 'paused' OR skip_reason = 'edited'),
  stop_reason         TEXT CHECK (
                        stop_reason = 'lease_expired' OR stop_reason = 'turn_limit_exceeded' OR stop_reason = 'cancelled'),
  stop_requested_at   INTEGER,
  not_before          INTEGER,
  queued_at           INTEGER NOT NULL,
  slot_claimed_at     INTEGER,
  claimed_boottime_ms INTEGER,
  claim_no            INTEGER NOT NULL DEFAULT 0,
  launches            INTEGER NOT NULL DEFAULT 0,
  lease_expires_at    INTEGER,
  started_at          INTEGER,
  completed_at        INTEGER,
  attempt             INTEGER NOT NULL DEFAULT 1 CHECK (attempt >= 1),
  max_turns           INTEGER,
  turn_count          INTEGER,
  forced              INTEGER NOT NULL DEFAULT 0 CHECK (forced IN (0, 1)),
  requester           TEXT,
  event_id            TEXT,
  trigger_kind        TEXT,
  host                TEXT,
  boot_id             TEXT,
  unit                TEXT,
  pid                 INTEGER,
  pid_start           INTEGER,
  exit_status         INTEGER,
  http_status         INTEGER,
  result_summary      TEXT,
  CHECK ((status = 'skipped') = (skip_reason IS NOT NULL)),
  CHECK (status NOT IN ('claimed', 'running') OR (slot_claimed_at IS NOT NULL AND lease_expires_at IS NOT NULL)),
  CHECK ((status = 'queued' OR status = 'claimed' OR status = 'running') = (completed_at IS NULL)),
  CHECK (status <> 'failed' OR failure_reason IS NOT NULL),
  CHECK (source <> 'scheduled' OR (scheduled_for IS NOT NULL AND slots_from IS NOT NULL
                                   AND slots_from <= scheduled_for))
) STRICT;

-- One firing per slot, whoever ticks and however often.
CREATE UNIQUE INDEX runs_slot ON runs (job_id, scheduled_for) WHERE source = 'scheduled';
CREATE UNIQUE INDEX runs_event ON runs (job_id, event_id, trigger_kind) WHERE event_id IS NOT NULL;
-- Live, by the CHECK above, and said without an IN: see there.
CREATE INDEX runs_live ON runs (completed_at, job_id, status) WHERE completed_at IS NULL;
CREATE INDEX runs_by_job ON runs (job_id, run_id);
CREATE INDEX runs_ended ON runs (completed_at) WHERE completed_at IS NOT NULL;
-- The newest success of a job, and whether there is a newer one: what stays when old rows go.
CREATE INDEX runs_ended_by_job ON runs (job_id, status, run_id) WHERE completed_at IS NOT NULL;

CREATE TABLE schedule_firing_metrics (
  run_id               INTEGER NOT NULL,
  attempt              INTEGER NOT NULL,
  job_id               TEXT NOT NULL,
  fired_at             INTEGER NOT NULL,
  slot_claimed_at      INTEGER,
  completed_at         INTEGER NOT NULL,
  slot_wait_ms         INTEGER,
  duration_ms          INTEGER,
  lateness_ms          INTEGER,
  turn_count           INTEGER,
  max_turns_at_firing  INTEGER,
  concurrent_schedules INTEGER,
  pressure_sources     TEXT,
  psi_cpu_avg10        REAL,
  failure_reason       TEXT,
  PRIMARY KEY (run_id, attempt)
) STRICT, WITHOUT ROWID;
CREATE INDEX schedule_firing_metrics_by_job ON schedule_firing_metrics (job_id, completed_at);
CREATE INDEX schedule_firing_metrics_ended ON schedule_firing_metrics (completed_at);

CREATE TABLE pressure_sources (
  name       TEXT PRIMARY KEY,
  expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
  event_id    TEXT PRIMARY KEY,
  run_id      INTEGER,
  kind        TEXT NOT NULL,
  turns       INTEGER,
  data        TEXT,
  emitted_at  INTEGER NOT NULL,
  received_at INTEGER NOT NULL
) STRICT;
CREATE INDEX events_by_run ON events (run_id);
CREATE INDEX events_received ON events (received_at);

-- A dirty mark: the run's present state has not reached the legacy ledger yet.
CREATE TABLE ledger_outbox (
  run_id  INTEGER PRIMARY KEY,
  version INTEGER NOT NULL
) STRICT;

CREATE TABLE audit_log (
  audit_id INTEGER PRIMARY KEY AUTOINCREMENT,
  at       INTEGER NOT NULL,
  actor    TEXT NOT NULL,
  command  TEXT NOT NULL,
  subject  TEXT,
  before   TEXT,
  after    TEXT,
  reason   TEXT
) STRICT;
CREATE INDEX audit_log_at ON audit_log (at);
-- Why did it not run: what was done to one job, and when no tick came.
CREATE INDEX audit_log_by_subject ON audit_log (subject, at) WHERE subject IS NOT NULL;
CREATE INDEX audit_log_by_command ON audit_log (command, at);
