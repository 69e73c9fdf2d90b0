-- A seal that is known from what was built from it. One of another set than the lake has now stands for no revision.
INSERT INTO seal (
    window_start, version, digest, revision, coverage_revision, sealed_at,
    files, rows, bytes, tickers, late_rows, quarantined
)
SELECT
    w.window_start,
    %(version)s,
    %(digest)s,
    CASE WHEN %(is_current)s THEN w.revision ELSE -1 END,
    w.coverage_revision,
    coalesce(%(sealed_at)s, clock_timestamp()),
    count(f.file_id),
    coalesce(sum(f.rows), 0),
    coalesce(sum(f.bytes), 0),
    count(DISTINCT f.ticker),
    coalesce(sum(f.rows) FILTER (WHERE f.min_received_us >= %(late_after_us)s), 0),
    (
        SELECT coalesce(sum(rows), 0)
        FROM lake_file
        WHERE minute >= %(start)s AND minute < %(end)s AND kind = 'quarantine'
    )
FROM lake_window AS w
LEFT JOIN lake_file AS f ON f.file_id = ANY(%(files)s::bigint[])
WHERE w.window_start = %(start)s
GROUP BY w.window_start, w.revision, w.coverage_revision
