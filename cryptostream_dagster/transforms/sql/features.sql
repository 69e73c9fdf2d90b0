-- One row per ticker with a book in the window, from `weighed` (weighed.sql). What each column means is stated in
-- docs/features.md.
--
-- What is computed in doubles (one book's depth, its imbalance, one return) is computed by one thread in one
-- order, and then summed as decimals: the same books give the same row, in whatever order the threads add.
, measured AS (
    SELECT * FROM weighed WHERE usable
),
-- The mid at each full second: the last one until then. Between two seconds that saw a book nothing returns.
sampled AS (
    SELECT
        ticker,
        greatest(ceil((tms - $start_ms) / {sample_ms}), 0)::INTEGER AS sample,
        arg_max(mid, row_number)::DOUBLE AS mid
    FROM measured
    GROUP BY ALL
),
moved AS (
    SELECT ticker, sample, ln(mid / lag(mid) OVER (PARTITION BY ticker ORDER BY sample)) AS step FROM sampled
),
varied AS (
    SELECT
        ticker,
        ($end_ms - $start_ms) // {sample_ms} - min(sample) AS returns,
        CASE WHEN returns > 0
            THEN sqrt(coalesce(sum((step * step)::DECIMAL(38, 26)), 0)::DOUBLE)::DECIMAL(18, 12)
        END AS volatility
    FROM moved
    GROUP BY ticker
)
SELECT
    m.ticker,
    any_value(market) AS market,
    count(*) FILTER (WHERE is_event) AS book_count,
    sum(weight_ms)::BIGINT AS weight_ms,
    sum(spread_bps * weight_ms) AS spread_ms,
    {sums},
    sum(imbalance * weight_ms) AS imbalance_ms,
    coalesce(sum(weight_ms) FILTER (WHERE imbalance IS NOT NULL), 0)::BIGINT AS imbalance_weight_ms,
    arg_max(ask, row_number) AS close_ask,
    arg_max(bid, row_number) AS close_bid,
    TRY_CAST(arg_max(ask_size1, row_number)::VARCHAR AS DECIMAL(28, 10)) AS close_ask_size,
    TRY_CAST(arg_max(bid_size1, row_number)::VARCHAR AS DECIMAL(28, 10)) AS close_bid_size,
    any_value(volatility) AS volatility,
    any_value(returns)::INTEGER AS returns
FROM measured AS m
JOIN varied USING (ticker)
GROUP BY m.ticker
HAVING book_count > 0
ORDER BY m.ticker
