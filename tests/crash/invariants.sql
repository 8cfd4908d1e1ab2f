-- What must hold after every single statement, watched by the database itself. For stores of tests only.
-- A violation is noted, not refused: the program under test must not be helped by its watchman.

CREATE TABLE violations (
  id     INTEGER PRIMARY KEY,
  what   TEXT NOT NULL,
  run_id INTEGER,
  detail TEXT
) STRICT;

CREATE TRIGGER watch_terminal_states AFTER UPDATE ON runs
WHEN OLD.status IN ('completed', 'failed', 'cancelled', 'skipped')
BEGIN
  INSERT INTO violations (what, run_id, detail)
  VALUES ('a terminal state was changed', OLD.run_id, OLD.status || ' to ' || NEW.status);
END;

CREATE TRIGGER watch_steps AFTER UPDATE OF status ON runs
WHEN OLD.status <> NEW.status
 AND OLD.status || ' ' || NEW.status NOT IN (
   'queued claimed', 'queued cancelled',
   'claimed running', 'claimed queued', 'claimed failed', 'claimed cancelled',
   'running queued', 'running completed', 'running failed', 'running cancelled')
BEGIN
  INSERT INTO violations (what, run_id, detail)
  VALUES ('a step that is none', OLD.run_id, OLD.status || ' to ' || NEW.status);
END;

CREATE TRIGGER watch_cap AFTER UPDATE OF status ON runs
WHEN NEW.status IN ('claimed', 'running') AND OLD.status NOT IN ('claimed', 'running') AND NEW.forced = 0
 AND (SELECT count(*) FROM runs WHERE status IN ('claimed', 'running') AND forced = 0)
   > coalesce((SELECT CAST(value AS INTEGER) FROM settings WHERE key = 'schedule.max_concurrent'), 2)
BEGIN
  INSERT INTO violations (what, run_id, detail)
  VALUES ('the cap was exceeded', NEW.run_id,
          (SELECT count(*) FROM runs WHERE status IN ('claimed', 'running') AND forced = 0) || ' hold a slot');
END;

CREATE TRIGGER watch_one_slot_per_job AFTER UPDATE OF status ON runs
WHEN NEW.status IN ('claimed', 'running') AND OLD.status NOT IN ('claimed', 'running')
 AND (SELECT overlap FROM scheduled_jobs WHERE job_id = NEW.job_id) <> 'allow'
 AND (SELECT count(*) FROM runs WHERE job_id = NEW.job_id AND status IN ('claimed', 'running')) > 1
BEGIN
  INSERT INTO violations (what, run_id, detail) VALUES ('a job held two slots', NEW.run_id, NEW.job_id);
END;

CREATE TRIGGER watch_births AFTER INSERT ON runs
WHEN NEW.status NOT IN ('queued', 'skipped')
BEGIN
  INSERT INTO violations (what, run_id, detail) VALUES ('a run was born late', NEW.run_id, NEW.status);
END;

CREATE TRIGGER watch_claim_numbers AFTER UPDATE ON runs
WHEN NEW.claim_no <> OLD.claim_no + (
  (NEW.status = 'claimed' AND OLD.status = 'queued')
  OR (NEW.status = 'claimed' AND OLD.status = 'claimed' AND NEW.launches <> OLD.launches))
BEGIN
  INSERT INTO violations (what, run_id, detail)
  VALUES ('a claim number was not raised by one at a claim', NEW.run_id, OLD.claim_no || ' to ' || NEW.claim_no);
END;

CREATE TRIGGER watch_attempts AFTER UPDATE ON runs
WHEN NEW.attempt <> OLD.attempt + (NEW.status = 'queued' AND OLD.status <> 'queued')
  OR NEW.attempt > coalesce((SELECT max_attempts FROM scheduled_jobs WHERE job_id = NEW.job_id), NEW.attempt)
BEGIN
  INSERT INTO violations (what, run_id, detail)
  VALUES ('an attempt was miscounted', NEW.run_id, OLD.attempt || ' to ' || NEW.attempt);
END;

CREATE TRIGGER watch_identity AFTER UPDATE ON runs
WHEN NEW.job_id <> OLD.job_id OR NEW.source <> OLD.source OR NEW.scheduled_for IS NOT OLD.scheduled_for
  OR NEW.slots_from IS NOT OLD.slots_from OR NEW.run_id <> OLD.run_id
BEGIN
  INSERT INTO violations (what, run_id, detail) VALUES ('a run became another', OLD.run_id, NULL);
END;

CREATE TRIGGER watch_slots AFTER INSERT ON runs
WHEN NEW.source = 'scheduled'
 AND EXISTS (SELECT 1 FROM runs AS other
              WHERE other.job_id = NEW.job_id AND other.source = 'scheduled' AND other.run_id <> NEW.run_id
                AND other.scheduled_for >= NEW.slots_from AND other.slots_from <= NEW.scheduled_for)
BEGIN
  INSERT INTO violations (what, run_id, detail) VALUES ('a slot has two rows', NEW.run_id, NEW.job_id);
END;

CREATE TRIGGER watch_watermarks AFTER UPDATE OF last_scheduled_for ON scheduled_jobs
WHEN NEW.last_scheduled_for < OLD.last_scheduled_for AND NEW.anchor_at = OLD.anchor_at
BEGIN
  INSERT INTO violations (what, run_id, detail) VALUES ('a watermark went back', NULL, NEW.job_id);
END;

CREATE TRIGGER watch_removals BEFORE DELETE ON runs
WHEN OLD.status IN ('queued', 'claimed', 'running')
BEGIN
  INSERT INTO violations (what, run_id, detail) VALUES ('a live run was deleted', OLD.run_id, OLD.status);
END;
