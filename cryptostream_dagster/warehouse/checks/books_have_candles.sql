-- A ticker has a candle exactly if it has a book, and both count the same books.
SELECT
    count(*) AS violations,
    string_agg(coalesce(v.ticker, o.ticker), ', ' ORDER BY coalesce(v.ticker, o.ticker)) AS detail
FROM (SELECT * FROM coverage_5m WHERE window_start = %(start)s) AS v
FULL JOIN (SELECT * FROM ohlc_5m_ticker WHERE event_time = %(start)s) AS o ON o.ticker = v.ticker
WHERE coalesce(v.book_count, 0) <> coalesce(o.book_count, 0)
