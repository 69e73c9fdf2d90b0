-- Sealed rows = written + duplicates + quarantined, for every ticker and for the window.
WITH parquet AS (
    SELECT
        coalesce(sum(sealed_rows), 0) AS sealed_rows,
        coalesce(sum(abs(sealed_rows - rows - duplicates - quarantined)), 0) AS unexplained
    FROM parquet_file
    WHERE window_start = %(start)s
)
SELECT
    (p.unexplained + abs(s.rows - p.sealed_rows))::bigint AS violations,
    CASE WHEN p.unexplained > 0 OR s.rows <> p.sealed_rows
        THEN format('sealed %%s, accounted for %%s', s.rows, p.sealed_rows - p.unexplained)
    END AS detail
FROM parquet AS p
JOIN built AS b ON b.window_start = %(start)s AND b.asset = 'orderbook_parquet'
JOIN seal AS s ON s.window_start = b.window_start AND s.version = b.version
