INSERT INTO daily_file (day, ticker, path, bytes, rows, digest)
VALUES (%(day)s, %(ticker)s, %(path)s, %(bytes)s, %(rows)s, %(digest)s)
ON CONFLICT (day, ticker) DO UPDATE
SET path = excluded.path, bytes = excluded.bytes, rows = excluded.rows, digest = excluded.digest
