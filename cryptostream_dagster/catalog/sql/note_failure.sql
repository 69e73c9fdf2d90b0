INSERT INTO window_failure (window_start, asset, run_id, reason)
VALUES (%(start)s, %(asset)s, %(run)s, %(reason)s)
ON CONFLICT (window_start, asset) DO UPDATE
SET run_id = excluded.run_id, reason = excluded.reason, failed_at = clock_timestamp()
