-- The rows of the Parquet objects, each book once, in total order.
-- A duplicate is the same book: market, stamp, grouping and every number. The first in the order stays.
-- Few stamps occur twice, so only those go through the comparison of all columns.
WITH twice AS (
    SELECT market, tms FROM line WHERE fits GROUP BY market, tms HAVING count(*) > 1
),
ranked AS (
    SELECT
        rowid AS line_id,
        row_number() OVER (
            PARTITION BY market, tms, "level", total_ask_size, total_bid_size, {level_names}
            ORDER BY received_us, chain, "partition", "offset"
        ) AS occurrence
    FROM line
    WHERE fits AND (market, tms) IN (FROM twice)
)
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
WHERE fits AND rowid NOT IN (SELECT line_id FROM ranked WHERE occurrence > 1)
ORDER BY ticker, tms, received_us, chain, "partition", "offset"
