-- The same books again: what stands beside them may have changed.
UPDATE seal
SET
    revision = %(revision)s,
    coverage_revision = %(coverage_revision)s,
    quarantined = (
        SELECT coalesce(sum(rows), 0)
        FROM lake_file
        WHERE minute >= %(start)s AND minute < %(end)s AND kind = 'quarantine'
    )
WHERE window_start = %(start)s AND version = %(version)s
