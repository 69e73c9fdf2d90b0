-- The oldest commits of a partition, and whether nothing of them is needed: made before the instant, and naming nothing
-- of a window that is not frozen.
SELECT
    c.base_offset,
    c.committed_at < %(until)s AND NOT EXISTS (
        SELECT FROM lake_file AS f
        WHERE f.chain = c.chain AND f.partition = c.partition AND f.base_offset = c.base_offset
        AND f.minute >= %(until)s
    )
FROM lake_commit AS c
WHERE c.chain = %(chain)s AND c.partition = %(partition)s
ORDER BY c.base_offset
LIMIT %(limit)s
