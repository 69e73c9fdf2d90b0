INSERT INTO lake_file (
    chain, partition, base_offset, kind, path, ticker, minute, rows, bytes, crc32c,
    min_received_us, max_received_us
)
SELECT * FROM new_file
