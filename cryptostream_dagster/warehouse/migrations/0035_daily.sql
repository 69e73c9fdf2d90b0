-- Closed days in one file per ticker (docs/daily.md). What is recorded of a day is the digest over its windows'
-- built versions: the day wants writing exactly when that is another one now.
CREATE TABLE daily (
    day              date PRIMARY KEY,
    digest           text,                         -- that the files were written from; NULL: never finished
    built_at         timestamptz,
    requested_digest text,                         -- what the schedule asked for last,
    requests         integer NOT NULL DEFAULT 0,   -- how often at that digest,
    requested_at     timestamptz                   -- and when
);
COMMENT ON TABLE daily IS 'Days of the market''s clock whose Parquet was written into one file per ticker';

-- Its files, each recorded when it is written: a run that was killed goes on where it was.
CREATE TABLE daily_file (
    day    date NOT NULL,
    ticker text NOT NULL,
    path   text NOT NULL,
    bytes  bigint NOT NULL,
    rows   bigint NOT NULL,
    digest text NOT NULL,   -- of the day when it was written
    PRIMARY KEY (day, ticker)
);
COMMENT ON TABLE daily_file IS 'One row per ticker and day; path is relative to DAILY_URL';
