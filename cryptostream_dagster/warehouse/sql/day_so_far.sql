-- A ticker's candles of the market's day until a window, in order.
SELECT event_time, open_price, high_price, low_price, close_price, mean_spread_bps
FROM ohlc_5m_ticker
WHERE ticker = %(ticker)s AND event_date = %(day)s AND event_time <= %(last)s
ORDER BY event_time
