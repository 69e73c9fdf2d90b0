SELECT
    event_time, open_price, high_price, low_price, close_price, prev_close_price, twap_price, book_count,
    first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at
FROM ohlc_5m_ticker
WHERE ticker = %(ticker)s
AND (%(since)s::timestamptz IS NULL OR event_time >= %(since)s)
AND (%(until)s::timestamptz IS NULL OR event_time < %(until)s)
ORDER BY event_time
