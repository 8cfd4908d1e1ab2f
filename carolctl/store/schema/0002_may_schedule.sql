-- Whether what runs inside a run of the job may add, change, run and trigger jobs.
ALTER TABLE scheduled_jobs ADD COLUMN may_schedule INTEGER NOT NULL DEFAULT 0 CHECK (may_schedule IN (0, 1));
