INSERT INTO parquet_rewritten AS r (window_start, times, rewritten_at)
VALUES (%(start)s, 1, clock_timestamp())
ON CONFLICT (window_start) DO UPDATE SET times = r.times + 1, rewritten_at = excluded.rewritten_at
