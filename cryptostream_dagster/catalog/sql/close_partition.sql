UPDATE lake_partition
SET end_offset = %(end)s, next_offset = least(next_offset, %(end)s)
WHERE chain = %(chain)s AND partition = %(partition)s
