INSERT INTO daily (day, digest, built_at) VALUES (%(day)s, %(digest)s, clock_timestamp())
ON CONFLICT (day) DO UPDATE SET digest = excluded.digest, built_at = excluded.built_at
