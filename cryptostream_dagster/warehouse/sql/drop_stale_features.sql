-- Rows that are not what they should be go; those that are stay as they are.
DELETE FROM orderbook_features_5m AS o
WHERE o.event_time = %(start)s AND o.event_date = %(event_date)s AND NOT EXISTS (
    SELECT FROM fresh AS f
    WHERE f.ticker = o.ticker
    AND (
        f.market, f.mean_spread_bps, f.ask_depth_10bps, f.bid_depth_10bps, f.ask_depth_50bps, f.bid_depth_50bps,
        f.imbalance, f.close_microprice, f.realized_volatility, f.return_count, f.book_count
    ) IS NOT DISTINCT FROM (
        o.market, o.mean_spread_bps, o.ask_depth_10bps, o.bid_depth_10bps, o.ask_depth_50bps, o.bid_depth_50bps,
        o.imbalance, o.close_microprice, o.realized_volatility, o.return_count, o.book_count
    )
)
