INSERT INTO parquet_file (window_start, ticker, path, bytes, sealed_rows, rows, duplicates, quarantined)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
