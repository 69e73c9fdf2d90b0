-- The partitions that are not through an instant yet; of a closed chain those that are not through to its end.
SELECT chain, topic, partition, end_offset IS NOT NULL
FROM lake_partition
JOIN lake_chain USING (chain)
WHERE CASE
    WHEN end_offset IS NULL THEN coalesce(minutes_through < %(until)s, true)
    ELSE next_offset < end_offset
END
ORDER BY chain, partition
