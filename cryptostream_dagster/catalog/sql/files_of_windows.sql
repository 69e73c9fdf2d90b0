-- The books' objects of some windows, in the order of a seal's digest.
SELECT
    w.window_start, f.file_id, f.path, f.ticker, f.chain, f.partition, f.base_offset, f.rows, f.bytes, f.crc32c
FROM unnest(%(windows)s::timestamptz[]) AS w (window_start)
JOIN lake_file AS f
    ON f.minute >= w.window_start AND f.minute < w.window_start + interval '5 minutes' AND f.kind = 'book'
ORDER BY w.window_start, f.path COLLATE "C"
