SELECT
    event_time, open_price, high_price, low_price, close_price, book_count, coverage_ratio, carried_forward,
    carried_from
FROM ohlc_5m_filled
WHERE ticker = %(ticker)s
AND (%(since)s::timestamptz IS NULL OR event_time >= %(since)s)
AND (%(until)s::timestamptz IS NULL OR event_time < %(until)s)
ORDER BY event_time
