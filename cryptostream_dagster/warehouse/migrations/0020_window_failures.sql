-- Why a window is not built: the last failure of each asset, kept until the asset is built.
CREATE TABLE window_failure (
    window_start timestamptz NOT NULL,
    asset        text NOT NULL,
    run_id       text NOT NULL,             -- Dagster's
    reason       text NOT NULL,             -- one sentence, for people
    failed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (window_start, asset)
);
CREATE INDEX window_failure_run ON window_failure (run_id);
