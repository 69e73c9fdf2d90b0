-- When the lake began, the newest window that is built, and the newest of these that was listened to, at or after an
-- instant. Each row is looked at in turn, from the newest on, until one will do.
SELECT
    (SELECT min(since) FROM lake_chain) AS began,
    (SELECT max(window_start) FROM built WHERE asset = 'ohlc_5m_ticker') AS newest_built,
    (
        SELECT b.window_start
        FROM built AS b
        CROSS JOIN LATERAL (
            SELECT avg(coverage_ratio) AS mean
            FROM coverage_5m AS v
            WHERE v.window_start = b.window_start AND v.subscribed
        ) AS covered
        WHERE b.asset = 'ohlc_5m_ticker' AND b.window_start >= %(since)s AND covered.mean >= %(enough)s
        ORDER BY b.window_start DESC
        LIMIT 1
    ) AS newest_covered
