-- A source of pressure is held by name, and beside that by every command that runs under it: each holder has a row,
-- so that the end of one leaves the others. The plain hold of a name has no holder.
CREATE TABLE pressure_holders (
  name       TEXT NOT NULL,
  expires_at INTEGER NOT NULL,
  holder     TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (name, holder)
) STRICT, WITHOUT ROWID;
INSERT INTO pressure_holders (name, expires_at) SELECT name, expires_at FROM pressure_sources;
DROP TABLE pressure_sources;
ALTER TABLE pressure_holders RENAME TO pressure_sources;

-- The breach streak that the last success ended: an event that comes home after it may show that it was a breach.
ALTER TABLE scheduled_jobs ADD COLUMN breaches_before_success INTEGER NOT NULL DEFAULT 0;
