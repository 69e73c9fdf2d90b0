UPDATE ohlc_5m_ticker AS o
SET prev_close_price = p.close_price, built_at = %(now)s
FROM ohlc_5m_ticker AS n
LEFT JOIN ohlc_5m_ticker AS p ON p.ticker = n.ticker AND p.event_time = %(start)s
WHERE n.event_time = %(next_start)s
AND o.ticker = n.ticker
AND o.event_time = n.event_time
AND o.event_date = n.event_date
AND o.prev_close_price IS DISTINCT FROM p.close_price
