INSERT INTO orderbook_features_5m (
    ticker, market, event_time, event_date, mean_spread_bps, ask_depth_10bps, bid_depth_10bps, ask_depth_50bps,
    bid_depth_50bps, imbalance, close_microprice, realized_volatility, return_count, book_count, version, built_at
)
SELECT * FROM fresh
ON CONFLICT (ticker, event_time, event_date) DO NOTHING
