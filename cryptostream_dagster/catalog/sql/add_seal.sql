INSERT INTO seal (
    window_start, version, digest, revision, coverage_revision, sealed_at,
    files, rows, bytes, tickers, late_rows, quarantined
)
SELECT
    %(start)s,
    %(version)s,
    %(digest)s,
    %(revision)s,
    %(coverage_revision)s,
    clock_timestamp(),
    count(*) FILTER (WHERE kind = 'book'),
    coalesce(sum(rows) FILTER (WHERE kind = 'book'), 0),
    coalesce(sum(bytes) FILTER (WHERE kind = 'book'), 0),
    count(DISTINCT ticker) FILTER (WHERE kind = 'book'),
    coalesce(sum(rows) FILTER (WHERE kind = 'book' AND min_received_us >= %(late_after_us)s), 0),
    coalesce(sum(rows) FILTER (WHERE kind = 'quarantine'), 0)
FROM lake_file
WHERE minute >= %(start)s AND minute < %(end)s
