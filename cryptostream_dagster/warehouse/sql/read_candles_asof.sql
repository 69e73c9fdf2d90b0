-- What a reader would have been given at that moment: candles that were there then and still are, and those that
-- were superseded since.
SELECT
    event_time, open_price, high_price, low_price, close_price, prev_close_price, twap_price, book_count,
    first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at
FROM ohlc_5m_ticker
WHERE ticker = %(ticker)s
AND built_at <= %(asof)s
AND (%(since)s::timestamptz IS NULL OR event_time >= %(since)s)
AND (%(until)s::timestamptz IS NULL OR event_time < %(until)s)
UNION ALL
SELECT
    event_time, open_price, high_price, low_price, close_price, prev_close_price, twap_price, book_count,
    first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at
FROM ohlc_5m_history
WHERE ticker = %(ticker)s
AND valid_from <= %(asof)s AND valid_to > %(asof)s
AND (%(since)s::timestamptz IS NULL OR event_time >= %(since)s)
AND (%(until)s::timestamptz IS NULL OR event_time < %(until)s)
ORDER BY event_time
