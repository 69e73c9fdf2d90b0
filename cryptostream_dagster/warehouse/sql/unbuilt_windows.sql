-- Windows that are complete and not built as the lake has them: how many, the oldest; and how many are frozen so.
SELECT
    count(*) FILTER (WHERE gone_path IS NULL AND window_start >= %(oldest)s),
    min(window_start) FILTER (WHERE gone_path IS NULL AND window_start >= %(oldest)s),
    count(*) FILTER (WHERE gone_path IS NOT NULL)
FROM lake_window
WHERE (
    built_revision IS DISTINCT FROM revision
    OR built_coverage_revision IS DISTINCT FROM coverage_revision
)
AND window_start <= %(last)s
