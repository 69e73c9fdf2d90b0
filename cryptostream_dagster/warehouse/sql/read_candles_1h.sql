SELECT
    event_time, open_price, high_price, low_price, close_price, twap_price, book_count, first_book_at, last_book_at,
    mean_spread_bps, coverage_ratio, windows
FROM ohlc_1h
WHERE ticker = %(ticker)s
AND (%(since)s::timestamptz IS NULL OR event_time >= %(since)s)
AND (%(until)s::timestamptz IS NULL OR event_time < %(until)s)
ORDER BY event_time
