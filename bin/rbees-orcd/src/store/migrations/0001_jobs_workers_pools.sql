-- Single facts that belong to no row: the largest time written, the largest job number ever given,
-- the next incarnation.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Every job that is queued, runs, or ended within the retention. Times are UTC microseconds.
-- Each index costs every commit a page: a submission pays for one, `live` finds what has not ended,
-- and lists walk back from the newest job.
CREATE TABLE jobs (
    number       INTEGER PRIMARY KEY,
    job_id       BLOB NOT NULL UNIQUE,
    status       TEXT NOT NULL,
    model        TEXT NOT NULL,
    submitted_at INTEGER NOT NULL,
    ended_at     INTEGER,
    detail       TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_by_end ON jobs (ended_at) WHERE ended_at IS NOT NULL;

-- What a job that has not ended needs beside its row: what was asked for, and the events that the
-- orchestrator itself published. The commit that ends the job erases it.
-- request NULL: it is large and lies in prompts/.
CREATE TABLE live (
    number  INTEGER PRIMARY KEY REFERENCES jobs (number) ON DELETE CASCADE,
    request BLOB,
    events  BLOB NOT NULL
) STRICT;

-- The events of an ended job.
-- complete = 0: events before the last one were lost with the machines that held them.
CREATE TABLE streams (
    number   INTEGER PRIMARY KEY REFERENCES jobs (number) ON DELETE CASCADE,
    events   BLOB NOT NULL,
    complete INTEGER NOT NULL,
    result   TEXT
) STRICT;

-- What running jobs that can go on elsewhere have said, second by second; their streams so far are
-- live.events and then these frames. Erased by the commit that ends the job.
CREATE TABLE checkpoints (
    number      INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    first_event INTEGER NOT NULL,
    frames      BLOB NOT NULL,
    PRIMARY KEY (number, first_event)
) STRICT, WITHOUT ROWID;

CREATE TABLE decisions (
    number   INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    attempt  INTEGER NOT NULL,
    decision TEXT NOT NULL,
    PRIMARY KEY (number, attempt)
) STRICT, WITHOUT ROWID;

-- What the brain was told, in the order it was told: a snapshot (hash is NULL), then what followed
-- it, then the next snapshot. hash and placements stand for the decisions since the snapshot; only a
-- snapshot says how many bytes of journal were written before it.
CREATE TABLE journal (
    seq          INTEGER PRIMARY KEY,
    at           INTEGER NOT NULL,
    hash         INTEGER,
    placements   INTEGER,
    bytes_before INTEGER,
    body         BLOB NOT NULL,
    CHECK ((hash IS NULL) = (placements IS NULL)),
    CHECK ((hash IS NULL) = (bytes_before IS NOT NULL))
) STRICT;
CREATE INDEX journal_snapshots ON journal (seq) WHERE hash IS NULL;

CREATE TABLE workers (
    worker_id TEXT PRIMARY KEY,
    detail    TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE pools (
    pool_id TEXT PRIMARY KEY,
    detail  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What jobs under one name have used, and where the last one ran.
CREATE TABLE sessions (
    tenant     TEXT NOT NULL,
    session_id TEXT NOT NULL,
    detail     TEXT NOT NULL,
    PRIMARY KEY (tenant, session_id)
) STRICT, WITHOUT ROWID;

-- What was learnt of rates and waits: one row, replaced now and then.
CREATE TABLE estimates (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    detail TEXT NOT NULL
) STRICT;

-- The policies in force: `live`, `last_good`, `shadow`; and `demoted`, which failed too often. Without a source it is the built-in one.
CREATE TABLE policies (
    part   TEXT PRIMARY KEY,
    name   TEXT NOT NULL,
    source TEXT,
    sha256 TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Workers that a pool was asked for and that have not registered: a restart asks what became of them.
CREATE TABLE spawns (
    worker_id TEXT PRIMARY KEY,
    detail    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
