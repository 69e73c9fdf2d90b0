-- A claim counts once everything that it speaks of is in the catalog. Claims are true for ever: keep the largest.
UPDATE lake_partition
SET
    minutes_through = greatest(minutes_through, %(minutes_through)s),
    claimed_at = greatest(claimed_at, %(claimed_at)s)
WHERE chain = %(chain)s AND partition = %(partition)s AND next_offset >= %(next)s
