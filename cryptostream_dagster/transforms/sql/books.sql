-- The rows of the Parquet objects, each book once, in total order.
SELECT
    market,
    ticker,
    epoch_ms(tms)::TIMESTAMP AS exchange_time,
    make_timestamp(received_us) AS received_time,
    stream_type,
    "level",
    total_ask_size,
    total_bid_size,
    {level_names},
    connection,
    "partition",
    "offset"
FROM line
WHERE fits AND rowid NOT IN (SELECT line_id FROM repeat)
ORDER BY ticker, tms, received_us, chain, "partition", "offset"
