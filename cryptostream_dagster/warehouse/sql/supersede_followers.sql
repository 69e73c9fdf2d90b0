-- The next window may have been built first: its prev_close_price is this window's close.
INSERT INTO ohlc_5m_history
SELECT o.*, o.built_at, %(now)s
FROM ohlc_5m_ticker AS o
LEFT JOIN ohlc_5m_ticker AS p ON p.ticker = o.ticker AND p.event_time = %(start)s
WHERE o.event_time = %(next_start)s AND o.prev_close_price IS DISTINCT FROM p.close_price
