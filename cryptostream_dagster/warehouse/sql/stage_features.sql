CREATE TEMP TABLE stage (
    ticker text, market text, book_count bigint, weight_ms bigint, spread_ms numeric,
    ask_depth_10bps_ms numeric, bid_depth_10bps_ms numeric, ask_depth_50bps_ms numeric, bid_depth_50bps_ms numeric,
    imbalance_ms numeric, imbalance_weight_ms bigint,
    close_ask numeric, close_bid numeric, close_ask_size numeric, close_bid_size numeric,
    volatility numeric, returns integer
) ON COMMIT DROP
