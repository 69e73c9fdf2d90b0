INSERT INTO parquet_file (window_start, ticker, path, bytes, sealed_rows, rows, duplicates, rejected)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
