-- Windows that are not built because a run failed, the newest failure first; not those that are frozen, or built.
SELECT f.window_start, f.asset, f.reason, f.failed_at, count(*) OVER ()
FROM (
    SELECT DISTINCT ON (window_start) * FROM window_failure WHERE window_start >= %(oldest)s
    ORDER BY window_start, failed_at
) AS f
LEFT JOIN lake_window AS w ON w.window_start = f.window_start
WHERE w.gone_path IS NULL
AND (
    w.built_revision IS DISTINCT FROM w.revision
    OR w.built_coverage_revision IS DISTINCT FROM w.coverage_revision
    OR w.window_start IS NULL
)
ORDER BY f.failed_at DESC
LIMIT %(limit)s
