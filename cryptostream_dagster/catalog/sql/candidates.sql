SELECT
    window_start,
    rows,
    greatest(revision, coverage_revision),
    first_change_at,
    last_change_at,
    CASE WHEN requested_revision = greatest(revision, coverage_revision) THEN requests ELSE 0 END,
    requested_at
FROM lake_window
WHERE (
    built_revision IS DISTINCT FROM revision
    OR built_coverage_revision IS DISTINCT FROM coverage_revision
)
AND gone_path IS NULL
AND window_start >= %(since)s
AND (%(until)s::timestamptz IS NULL OR window_start <= %(until)s)
-- What was never tried first: however many windows keep failing, they hold up no other.
ORDER BY CASE WHEN requested_revision = greatest(revision, coverage_revision) THEN requests ELSE 0 END, window_start DESC
LIMIT %(limit)s
