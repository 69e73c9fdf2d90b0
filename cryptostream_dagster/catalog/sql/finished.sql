-- What of a range of windows is built from the newest seal while nothing has joined since.
SELECT w.window_start, b.asset, s.version, s.digest
FROM lake_window AS w
JOIN LATERAL (
    SELECT version, digest FROM seal WHERE window_start = w.window_start ORDER BY version DESC LIMIT 1
) AS s ON true
JOIN built AS b ON b.window_start = w.window_start AND b.version = s.version
WHERE w.window_start >= %(first)s AND w.window_start <= %(last)s
AND w.built_revision = w.revision
AND w.built_coverage_revision = w.coverage_revision
