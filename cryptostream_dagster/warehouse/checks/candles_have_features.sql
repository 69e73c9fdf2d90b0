-- A ticker has features exactly if it has a candle, from the same books, and both say the same of the spread.
SELECT count(*) AS violations, string_agg(coalesce(o.ticker, f.ticker), ', ' ORDER BY coalesce(o.ticker, f.ticker)) AS detail
FROM (SELECT * FROM ohlc_5m_ticker WHERE event_time = %(start)s) AS o
FULL JOIN (SELECT * FROM orderbook_features_5m WHERE event_time = %(start)s) AS f ON f.ticker = o.ticker
WHERE (o.book_count, o.mean_spread_bps) IS DISTINCT FROM (f.book_count, f.mean_spread_bps)
