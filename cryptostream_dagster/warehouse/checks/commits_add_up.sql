-- Books + heartbeats + quarantined + missing = offsets, for every commit with an object in the window; and its
-- objects hold no more books than it counts (fewer: the catalog may have been pruned of old ones).
WITH here AS (
    SELECT DISTINCT chain, partition, base_offset
    FROM lake_file
    WHERE minute >= %(start)s AND minute < %(end)s
),
wrong AS (
    SELECT
        c.chain,
        c.partition,
        c.base_offset,
        abs(c.next_offset - c.base_offset - c.books - c.heartbeats - c.quarantined - c.missing)
            + greatest(o.books - c.books, 0) AS records
    FROM here
    JOIN lake_commit AS c USING (chain, partition, base_offset)
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(f.rows) FILTER (WHERE f.kind = 'book'), 0) AS books
        FROM lake_file AS f
        WHERE f.chain = c.chain AND f.partition = c.partition AND f.base_offset = c.base_offset
    ) AS o
)
SELECT
    coalesce(sum(records), 0)::bigint AS violations,
    string_agg(
        format('chain %%s partition %%s commit %%s: %%s records', chain, partition, base_offset, records), '; '
        ORDER BY chain, partition, base_offset
    ) AS detail
FROM wrong
WHERE records > 0
