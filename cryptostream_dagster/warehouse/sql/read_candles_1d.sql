-- A day of the market's clock begins at its midnight.
SELECT *
FROM (
    SELECT
        event_date::timestamp AT TIME ZONE %(zone)s AS event_time,
        open_price, high_price, low_price, close_price, twap_price, book_count, first_book_at, last_book_at,
        mean_spread_bps, coverage_ratio, windows
    FROM ohlc_1d
    WHERE ticker = %(ticker)s
) AS day
WHERE (%(since)s::timestamptz IS NULL OR event_time >= %(since)s)
AND (%(until)s::timestamptz IS NULL OR event_time < %(until)s)
ORDER BY event_time
