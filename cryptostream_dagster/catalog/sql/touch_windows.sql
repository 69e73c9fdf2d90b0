-- Ordered, so that two partitions synced at once lock the windows that they share in the same order.
INSERT INTO lake_window AS w (window_start, rows, revision, coverage_revision, first_change_at, last_change_at)
SELECT
    n.window_start,
    n.rows,
    CASE WHEN n.books > 0 THEN nextval('lake_revision') ELSE 0 END,
    CASE WHEN n.heartbeats > 0 THEN nextval('lake_revision') ELSE 0 END,
    clock_timestamp(),
    clock_timestamp()
FROM (
    SELECT
        date_bin('5 minutes', minute, 'epoch'::timestamptz) AS window_start,
        coalesce(sum(rows) FILTER (WHERE kind = 'book'), 0) AS rows,
        count(*) FILTER (WHERE kind = 'book') AS books,
        count(*) FILTER (WHERE kind = 'heartbeat') AS heartbeats
    FROM new_file
    GROUP BY 1
    ORDER BY 1
) AS n
WHERE n.books > 0 OR n.heartbeats > 0
ON CONFLICT (window_start) DO UPDATE
SET
    rows = w.rows + excluded.rows,
    revision = CASE WHEN excluded.revision > 0 THEN excluded.revision ELSE w.revision END,
    coverage_revision = CASE
        WHEN excluded.coverage_revision > 0 THEN excluded.coverage_revision ELSE w.coverage_revision
    END,
    first_change_at = coalesce(w.first_change_at, excluded.first_change_at),
    last_change_at = excluded.last_change_at
