INSERT INTO quarantined_line (window_start, ticker, path, line, partition, "offset", reason)
VALUES (%s, %s, %s, %s, %s, %s, %s)
