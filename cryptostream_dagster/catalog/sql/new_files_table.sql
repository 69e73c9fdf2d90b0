CREATE TEMP TABLE new_file (
    chain integer, partition integer, base_offset bigint, kind text, path text, ticker text, minute timestamptz,
    rows bigint, bytes bigint, crc32c text, min_received_us bigint, max_received_us bigint
) ON COMMIT DROP
