-- Windows with books that are not built as the lake has them and could be, if they were not too old.
SELECT count(*), min(window_start)
FROM lake_window
WHERE (
    built_revision IS DISTINCT FROM revision
    OR built_coverage_revision IS DISTINCT FROM coverage_revision
)
AND rows > 0
AND gone_path IS NULL
AND window_start >= greatest(
    %(since)s, (SELECT max(value::timestamptz) FROM meta WHERE key = 'frozen_until')
)
AND window_start < %(until)s
