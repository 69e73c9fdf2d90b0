-- The candles of the tickers with the most books between two instants, as far as all of a window was listened to: a
-- candle that may be missing books proves nothing.
WITH busiest AS (
    SELECT ticker
    FROM ohlc_5m_ticker
    WHERE event_time >= %(since)s AND event_time < %(until)s
    GROUP BY ticker
    ORDER BY sum(book_count) DESC, ticker COLLATE "C"
    LIMIT %(tickers)s
)
SELECT c.ticker, c.market, c.event_time, c.low_price, c.high_price, c.mean_spread_bps
FROM ohlc_5m_ticker AS c
JOIN busiest USING (ticker)
WHERE c.event_time >= %(since)s AND c.event_time < %(until)s
AND c.coverage_ratio >= %(covered)s
ORDER BY c.ticker COLLATE "C", c.event_time
