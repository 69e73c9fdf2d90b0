-- Candles of longer windows, and the series without holes.

CREATE VIEW ohlc_1h AS
SELECT
    ticker,
    market,
    date_trunc('hour', event_time, (SELECT value FROM meta WHERE key = 'time_zone')) AS event_time,
    (array_agg(open_price ORDER BY event_time))[1] AS open_price,
    max(high_price) AS high_price,
    min(low_price) AS low_price,
    (array_agg(close_price ORDER BY event_time DESC))[1] AS close_price,
    sum(book_count)::bigint AS book_count,
    min(first_book_at) AS first_book_at,
    max(last_book_at) AS last_book_at,
    count(*) AS windows
FROM ohlc_5m_ticker
GROUP BY 1, 2, 3;
COMMENT ON VIEW ohlc_1h IS 'Candles of an hour of the market''s clock; windows says how many of the 12 had a book';

CREATE VIEW ohlc_1d AS
SELECT
    ticker,
    market,
    event_date,
    (array_agg(open_price ORDER BY event_time))[1] AS open_price,
    max(high_price) AS high_price,
    min(low_price) AS low_price,
    (array_agg(close_price ORDER BY event_time DESC))[1] AS close_price,
    sum(book_count)::bigint AS book_count,
    min(first_book_at) AS first_book_at,
    max(last_book_at) AS last_book_at,
    count(*) AS windows
FROM ohlc_5m_ticker
GROUP BY ticker, market, event_date;
COMMENT ON VIEW ohlc_1d IS 'Candles of a day of the market''s zone; windows says how many of its windows had a book';

-- Every built window from a ticker's first candle on. Where it had no book the last close is carried forward,
-- and the row says so: nobody quoted anything new, or nobody was listening (coverage_5m knows which).
CREATE VIEW ohlc_5m_filled AS
SELECT
    t.ticker,
    t.market,
    w.window_start AS event_time,
    coalesce(c.open_price, before.close_price) AS open_price,
    coalesce(c.high_price, before.close_price) AS high_price,
    coalesce(c.low_price, before.close_price) AS low_price,
    coalesce(c.close_price, before.close_price) AS close_price,
    coalesce(c.book_count, 0) AS book_count,
    c.ticker IS NULL AS carried_forward,
    before.event_time AS carried_from
FROM ticker AS t
JOIN lake_window AS w ON w.window_start >= t.first_event_time AND w.built_at IS NOT NULL
LEFT JOIN ohlc_5m_ticker AS c ON c.ticker = t.ticker AND c.event_time = w.window_start
LEFT JOIN LATERAL (
    SELECT o.close_price, o.event_time
    FROM ohlc_5m_ticker AS o
    WHERE c.ticker IS NULL AND o.ticker = t.ticker AND o.event_time < w.window_start
    ORDER BY o.event_time DESC
    LIMIT 1
) AS before ON true;
COMMENT ON VIEW ohlc_5m_filled IS 'The 5-minute series without holes; carried_forward marks what no book confirmed';
