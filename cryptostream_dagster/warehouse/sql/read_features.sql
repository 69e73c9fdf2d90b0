SELECT
    event_time, mean_spread_bps, ask_depth_10bps, bid_depth_10bps, ask_depth_50bps, bid_depth_50bps, imbalance,
    close_microprice, realized_volatility, return_count, book_count, version, built_at
FROM orderbook_features_5m
WHERE ticker = %(ticker)s
AND (%(since)s::timestamptz IS NULL OR event_time >= %(since)s)
AND (%(until)s::timestamptz IS NULL OR event_time < %(until)s)
ORDER BY event_time
