INSERT INTO built (window_start, asset, version, digest, built_at)
VALUES (%(start)s, %(asset)s, %(version)s, %(digest)s, clock_timestamp())
ON CONFLICT (window_start, asset) DO UPDATE
SET version = excluded.version, digest = excluded.digest, built_at = excluded.built_at
WHERE built.version <> excluded.version
