-- How many there were stays in parquet_file; the raw objects that these lines are of have expired.
DELETE FROM quarantined_line
WHERE (window_start, path, line) IN (
    SELECT window_start, path, line FROM quarantined_line WHERE window_start < %(until)s ORDER BY 1 LIMIT %(limit)s
)
