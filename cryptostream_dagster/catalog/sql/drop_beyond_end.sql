-- Commits that turned out to lie beyond their chain's end, and what they named; their windows are to be redone.
WITH commits AS (
    DELETE FROM lake_commit
    WHERE chain = %(chain)s AND partition = %(partition)s AND base_offset >= %(end)s
),
files AS (
    DELETE FROM lake_file
    WHERE chain = %(chain)s AND partition = %(partition)s AND base_offset >= %(end)s
    RETURNING kind, minute, rows
)
UPDATE lake_window AS w
SET
    rows = w.rows - f.rows,
    revision = nextval('lake_revision'),
    coverage_revision = nextval('lake_revision'),
    first_change_at = coalesce(w.first_change_at, now()),
    last_change_at = now()
FROM (
    SELECT
        date_bin('5 minutes', minute, 'epoch'::timestamptz) AS window_start,
        coalesce(sum(rows) FILTER (WHERE kind = 'book'), 0) AS rows
    FROM files
    GROUP BY 1
) AS f
WHERE w.window_start = f.window_start
