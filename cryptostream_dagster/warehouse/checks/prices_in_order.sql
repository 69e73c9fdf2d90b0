-- low <= open, close <= high, and the low is a price.
SELECT count(*) AS violations, string_agg(ticker, ', ' ORDER BY ticker) AS detail
FROM ohlc_5m_ticker
WHERE event_time = %(start)s
AND NOT (
    low_price > 0
    AND low_price <= least(open_price, close_price)
    AND high_price >= greatest(open_price, close_price)
)
