-- Built from all that the lake holds of it.
UPDATE lake_window
SET
    built_revision = revision,
    built_coverage_revision = coverage_revision,
    built_at = coalesce(%(built_at)s, clock_timestamp()),
    first_change_at = NULL
WHERE window_start = %(start)s
