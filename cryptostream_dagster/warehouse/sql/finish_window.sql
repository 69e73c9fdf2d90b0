-- The window is built up to the state that its seal stands for, once everything is that people read of it; what
-- joined since keeps it on the list. Every step asks, and the last one finds that it was.
UPDATE lake_window AS w
SET
    built_revision = s.revision,
    built_coverage_revision = s.coverage_revision,
    built_at = clock_timestamp(),
    first_change_at = CASE
        WHEN w.revision = s.revision AND w.coverage_revision = s.coverage_revision THEN NULL
        ELSE w.last_change_at
    END
FROM seal AS s
WHERE w.window_start = %(start)s
AND s.window_start = w.window_start
AND s.version = %(version)s
AND (
    SELECT count(*) FROM built AS b
    WHERE b.window_start = w.window_start AND b.version = s.version AND b.asset = ANY(%(tables)s)
) = cardinality(%(tables)s)
