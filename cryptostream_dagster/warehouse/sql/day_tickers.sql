-- The tickers with rows in some windows, and what is recorded of their files of a day.
SELECT ticker, t.ticker IS NOT NULL, f.path, f.bytes, f.rows, f.digest
FROM (
    SELECT DISTINCT ticker FROM parquet_file
    WHERE window_start >= %(since)s AND window_start < %(until)s AND path <> ''
) AS t
FULL JOIN (SELECT * FROM daily_file WHERE day = %(day)s) AS f USING (ticker)
ORDER BY ticker COLLATE "C"
