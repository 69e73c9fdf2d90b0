-- The commits around a window's rows follow each other without a hole, and no offset was missing at the broker.
WITH span AS (
    SELECT f.chain, f.partition, min(f.base_offset) AS first, max(f.base_offset) AS last
    FROM seal_file AS s
    JOIN lake_file AS f USING (file_id)
    WHERE s.window_start = %(start)s
    AND s.version = (SELECT max(version) FROM seal WHERE window_start = %(start)s)
    GROUP BY 1, 2
),
sums AS (
    SELECT
        c.chain,
        c.partition,
        max(c.next_offset) - min(c.base_offset) - sum(c.next_offset - c.base_offset) AS hole,
        sum(c.missing) AS missing
    FROM span AS s
    JOIN lake_commit AS c USING (chain, partition)
    WHERE c.base_offset BETWEEN s.first AND s.last
    GROUP BY 1, 2
)
SELECT
    coalesce(sum(hole + missing), 0)::bigint AS violations,
    string_agg(format('chain %%s partition %%s: %%s offsets', chain, partition, hole + missing), '; ')
        FILTER (WHERE hole + missing > 0) AS detail
FROM sums
