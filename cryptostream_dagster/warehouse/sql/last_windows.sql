-- The newest windows that have ended: what is in them and what was built of them.
SELECT
    w.window_start,
    w.rows,
    s.tickers,
    v.mean,
    b.version,
    b.built_at,
    w.built_revision IS NOT DISTINCT FROM w.revision AND b.version IS NOT NULL,
    w.gone_path IS NOT NULL,
    f.asset || ': ' || f.reason
FROM lake_window AS w
LEFT JOIN built AS b ON b.window_start = w.window_start AND b.asset = %(asset)s
LEFT JOIN seal AS s ON s.window_start = w.window_start AND s.version = b.version
LEFT JOIN LATERAL (
    SELECT avg(coverage_ratio) AS mean FROM coverage_5m AS c WHERE c.window_start = w.window_start AND c.subscribed
) AS v ON true
LEFT JOIN LATERAL (
    SELECT asset, reason FROM window_failure AS f WHERE f.window_start = w.window_start ORDER BY failed_at LIMIT 1
) AS f ON true
WHERE w.window_start < %(until)s
ORDER BY w.window_start DESC
LIMIT %(limit)s
