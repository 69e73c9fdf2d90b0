-- Windows whose Parquet is whole: whether they have coverage, and what else is built of them from the same version.
SELECT
    p.window_start,
    EXISTS (SELECT FROM coverage_5m AS v WHERE v.window_start = p.window_start),
    ARRAY(SELECT asset FROM built AS b WHERE b.window_start = p.window_start AND b.version = p.version)
FROM built AS p
WHERE p.asset = %(parquet)s
ORDER BY p.window_start
