-- Sealed rows = written + duplicates + quarantined, for every ticker and for the window.
WITH parquet AS (
    SELECT ticker, sealed_rows, rows + duplicates + quarantined AS accounted
    FROM parquet_file
    WHERE window_start = %(start)s
),
wrong AS (
    SELECT ticker AS what, sealed_rows AS sealed, accounted FROM parquet WHERE sealed_rows <> accounted
    UNION ALL
    SELECT 'the window', s.rows, p.rows
    FROM built AS b
    JOIN seal AS s ON s.window_start = b.window_start AND s.version = b.version
    CROSS JOIN (SELECT coalesce(sum(sealed_rows), 0) AS rows FROM parquet) AS p
    WHERE b.window_start = %(start)s AND b.asset = 'orderbook_parquet' AND s.rows <> p.rows
)
SELECT
    coalesce(sum(abs(sealed - accounted)), 0)::bigint AS violations,
    string_agg(format('%%s: sealed %%s, accounted for %%s', what, sealed, accounted), '; ' ORDER BY what) AS detail
FROM wrong
