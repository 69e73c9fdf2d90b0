-- The commits around a window follow each other without a hole, and the broker had every offset of that time.
--
-- Nobody knows when a record that is missing was received. It was between the last record before its commit (the
-- chain's opening, if there is none) and the first one after it (the commit itself), so it is reported in every
-- window that this span touches: in one too many rather than in none.
WITH around AS (
    SELECT chain, partition, min(base_offset) AS first, max(base_offset) AS last
    FROM lake_file
    WHERE minute >= %(start)s AND minute < %(end)s
    GROUP BY 1, 2
),
hole AS (
    SELECT chain, partition, base_offset - before.next_offset AS offsets
    FROM around AS a
    JOIN lake_commit AS c USING (chain, partition)
    CROSS JOIN LATERAL (
        SELECT b.next_offset
        FROM lake_commit AS b
        WHERE b.chain = c.chain AND b.partition = c.partition AND b.base_offset < c.base_offset
        ORDER BY b.base_offset DESC
        LIMIT 1
    ) AS before
    WHERE c.base_offset BETWEEN a.first AND a.last AND c.base_offset > before.next_offset
),
missing AS (
    SELECT c.chain, c.partition, c.missing AS offsets
    FROM lake_commit AS c
    JOIN lake_chain AS h USING (chain)
    LEFT JOIN LATERAL (
        SELECT to_timestamp(f.max_received_us / 1e6) AS received_at
        FROM lake_file AS f
        WHERE f.chain = c.chain AND f.partition = c.partition AND f.base_offset < c.base_offset
        ORDER BY f.base_offset DESC, f.max_received_us DESC
        LIMIT 1
    ) AS before ON true
    LEFT JOIN LATERAL (
        SELECT to_timestamp(f.min_received_us / 1e6) AS received_at
        FROM lake_file AS f
        WHERE f.chain = c.chain AND f.partition = c.partition AND f.base_offset > c.base_offset
        ORDER BY f.base_offset, f.min_received_us
        LIMIT 1
    ) AS after ON true
    CROSS JOIN LATERAL (
        SELECT
            to_timestamp(min(f.min_received_us) / 1e6) AS first_at,
            to_timestamp(max(f.max_received_us) / 1e6) AS last_at
        FROM lake_file AS f
        WHERE f.chain = c.chain AND f.partition = c.partition AND f.base_offset = c.base_offset
    ) AS own
    WHERE c.missing > 0
    AND c.committed_at >= %(start)s
    -- Spooled records come out of order, so every stamp bounds the span.
    AND least(coalesce(before.received_at, h.since), own.first_at, after.received_at) < %(end)s
    AND greatest(before.received_at, own.last_at, coalesce(after.received_at, c.committed_at)) >= %(start)s
)
SELECT
    coalesce(sum(offsets), 0)::bigint AS violations,
    string_agg(
        format('chain %%s partition %%s: %%s offsets', chain, partition, offsets), '; '
        ORDER BY chain, partition
    ) AS detail
FROM (
    SELECT chain, partition, sum(offsets) AS offsets
    FROM (SELECT * FROM hole UNION ALL SELECT * FROM missing) AS wrong
    GROUP BY 1, 2
) AS by_partition
