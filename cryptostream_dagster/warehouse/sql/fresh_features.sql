-- The window's features as they should be.
CREATE TEMP TABLE fresh ON COMMIT DROP AS
SELECT
    ticker,
    market,
    %(start)s::timestamptz AS event_time,
    %(event_date)s::date AS event_date,
    (spread_ms / nullif(weight_ms, 0))::numeric(12, 6) AS mean_spread_bps,
    (ask_depth_10bps_ms / nullif(weight_ms, 0))::numeric(28, 10) AS ask_depth_10bps,
    (bid_depth_10bps_ms / nullif(weight_ms, 0))::numeric(28, 10) AS bid_depth_10bps,
    (ask_depth_50bps_ms / nullif(weight_ms, 0))::numeric(28, 10) AS ask_depth_50bps,
    (bid_depth_50bps_ms / nullif(weight_ms, 0))::numeric(28, 10) AS bid_depth_50bps,
    (imbalance_ms / nullif(imbalance_weight_ms, 0))::numeric(10, 9) AS imbalance,
    (
        (close_ask * close_bid_size + close_bid * close_ask_size) / nullif(close_ask_size + close_bid_size, 0)
    )::numeric(20, 10) AS close_microprice,
    volatility::numeric(18, 12) AS realized_volatility,
    returns AS return_count,
    book_count,
    %(version)s::integer AS version,
    clock_timestamp() AS built_at
FROM stage
