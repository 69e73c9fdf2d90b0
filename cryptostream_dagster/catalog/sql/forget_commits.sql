-- The lake's first heartbeat stays: before it coverage is unknown, after it known.
WITH files AS (
    DELETE FROM lake_file
    WHERE chain = %(chain)s AND partition = %(partition)s AND base_offset < %(kept)s
    AND file_id IS DISTINCT FROM (
        SELECT file_id FROM lake_file WHERE kind = 'heartbeat' ORDER BY minute, file_id LIMIT 1
    )
)
DELETE FROM lake_commit
WHERE chain = %(chain)s AND partition = %(partition)s AND base_offset < %(kept)s
