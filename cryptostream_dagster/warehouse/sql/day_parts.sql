-- The windows' objects of some tickers, in order of time.
SELECT f.ticker, f.window_start, f.path, b.version, b.digest, f.rows, f.bytes
FROM parquet_file AS f
JOIN built AS b ON b.window_start = f.window_start AND b.asset = %(asset)s
WHERE f.window_start >= %(since)s AND f.window_start < %(until)s
AND f.ticker = ANY(%(tickers)s) AND f.path <> ''
ORDER BY f.ticker, f.window_start
