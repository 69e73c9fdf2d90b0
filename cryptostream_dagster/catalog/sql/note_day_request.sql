INSERT INTO daily (day, requested_digest, requests, requested_at)
VALUES (%(day)s, %(digest)s, %(requests)s, clock_timestamp())
ON CONFLICT (day) DO UPDATE
SET
    requested_digest = excluded.requested_digest,
    requests = excluded.requests,
    requested_at = excluded.requested_at
