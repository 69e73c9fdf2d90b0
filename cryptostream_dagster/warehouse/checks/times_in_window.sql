-- The first and the last book of a candle lie in its window, and its date is the market's.
SELECT count(*) AS violations, string_agg(ticker, ', ' ORDER BY ticker) AS detail
FROM ohlc_5m_ticker
WHERE event_time = %(start)s
AND NOT (
    first_book_at >= %(start)s
    AND first_book_at <= last_book_at
    AND last_book_at < %(end)s
    AND event_date = (event_time AT TIME ZONE (SELECT value FROM meta WHERE key = 'time_zone'))::date
)
