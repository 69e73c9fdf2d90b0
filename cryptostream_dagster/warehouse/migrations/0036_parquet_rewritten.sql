-- Windows whose Parquet was written again from the same seal: forced, or because an object was lost. Their version
-- tells nothing of it, and a day that was made of what was there before wants writing again.
CREATE TABLE parquet_rewritten (
    window_start timestamptz PRIMARY KEY,
    times        integer NOT NULL,
    rewritten_at timestamptz NOT NULL
);
