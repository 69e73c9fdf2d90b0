-- Longer candles with their weighted means and their coverage; the series without holes with its coverage; what
-- was known when.

DROP VIEW ohlc_1h, ohlc_1d, ohlc_5m_filled;

-- How a ticker's time was listened to. Windows that are not sealed (yet) count as not listened to.
CREATE FUNCTION coverage_between(of_ticker text, since timestamptz, until timestamptz) RETURNS double precision
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN count(*) = count(coverage_ratio)
        THEN coalesce(sum(coverage_ratio), 0) * 300 / extract(epoch FROM until - since)::double precision
    END
    FROM coverage_5m
    WHERE ticker = of_ticker AND window_start >= since AND window_start < until
$$;
COMMENT ON FUNCTION coverage_between IS 'Share of [since, until) for which every change of a ticker''s book is known to have been received; NULL if that is unknown of a window in it';

CREATE VIEW ohlc_1h AS
SELECT
    c.*,
    coverage_between(c.ticker, c.event_time, c.event_time + interval '1 hour') AS coverage_ratio
FROM (
    SELECT
        ticker,
        market,
        date_trunc('hour', event_time, (SELECT value FROM meta WHERE key = 'time_zone')) AS event_time,
        event_date,
        (array_agg(open_price ORDER BY event_time))[1] AS open_price,
        max(high_price) AS high_price,
        min(low_price) AS low_price,
        (array_agg(close_price ORDER BY event_time DESC))[1] AS close_price,
        (sum(twap_price * coalesce(quoted_ms, 300000))
            / nullif(sum(coalesce(quoted_ms, 300000)) FILTER (WHERE twap_price IS NOT NULL), 0)
        )::numeric(20, 10) AS twap_price,
        (sum(mean_spread_bps * coalesce(quoted_ms, 300000))
            / nullif(sum(coalesce(quoted_ms, 300000)) FILTER (WHERE mean_spread_bps IS NOT NULL), 0)
        )::numeric(12, 6) AS mean_spread_bps,
        sum(book_count)::bigint AS book_count,
        min(first_book_at) AS first_book_at,
        max(last_book_at) AS last_book_at,
        count(*) AS windows
    FROM ohlc_5m_ticker
    GROUP BY 1, 2, 3, 4
) AS c;
COMMENT ON VIEW ohlc_1h IS 'Candles of an hour of the market''s clock; windows says how many of the 12 had a book';
COMMENT ON COLUMN ohlc_1h.twap_price IS 'Mid, averaged over the time for which one prevailed';
COMMENT ON COLUMN ohlc_1h.coverage_ratio IS 'Share of the hour for which every change is known to have been received; NULL: unknown';

CREATE VIEW ohlc_1d AS
SELECT
    c.*,
    coverage_between(
        c.ticker, c.event_date::timestamp AT TIME ZONE z.zone, (c.event_date + 1)::timestamp AT TIME ZONE z.zone
    ) AS coverage_ratio
FROM (
    SELECT
        ticker,
        market,
        event_date,
        (array_agg(open_price ORDER BY event_time))[1] AS open_price,
        max(high_price) AS high_price,
        min(low_price) AS low_price,
        (array_agg(close_price ORDER BY event_time DESC))[1] AS close_price,
        (sum(twap_price * coalesce(quoted_ms, 300000))
            / nullif(sum(coalesce(quoted_ms, 300000)) FILTER (WHERE twap_price IS NOT NULL), 0)
        )::numeric(20, 10) AS twap_price,
        (sum(mean_spread_bps * coalesce(quoted_ms, 300000))
            / nullif(sum(coalesce(quoted_ms, 300000)) FILTER (WHERE mean_spread_bps IS NOT NULL), 0)
        )::numeric(12, 6) AS mean_spread_bps,
        sum(book_count)::bigint AS book_count,
        min(first_book_at) AS first_book_at,
        max(last_book_at) AS last_book_at,
        count(*) AS windows
    FROM ohlc_5m_ticker
    GROUP BY ticker, market, event_date
) AS c
CROSS JOIN (SELECT value AS zone FROM meta WHERE key = 'time_zone') AS z;
COMMENT ON VIEW ohlc_1d IS 'Candles of a day of the market''s zone; windows says how many of its windows had a book';
COMMENT ON COLUMN ohlc_1d.twap_price IS 'Mid, averaged over the time for which one prevailed';
COMMENT ON COLUMN ohlc_1d.coverage_ratio IS 'Share of the day for which every change is known to have been received; NULL: unknown';

-- Every built window from a ticker's first candle on. Where it had no book the last close is carried forward,
-- and the row says so: nobody quoted anything new, or nobody was listening (coverage_ratio knows which).
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
    before.event_time AS carried_from,
    v.coverage_ratio
FROM ticker AS t
JOIN lake_window AS w ON w.window_start >= t.first_event_time AND w.built_at IS NOT NULL
LEFT JOIN ohlc_5m_ticker AS c ON c.ticker = t.ticker AND c.event_time = w.window_start
LEFT JOIN coverage_5m AS v ON v.ticker = t.ticker AND v.window_start = w.window_start
LEFT JOIN LATERAL (
    SELECT o.close_price, o.event_time
    FROM ohlc_5m_ticker AS o
    WHERE c.ticker IS NULL AND o.ticker = t.ticker AND o.event_time < w.window_start
    ORDER BY o.event_time DESC
    LIMIT 1
) AS before ON true;
COMMENT ON VIEW ohlc_5m_filled IS 'The 5-minute series without holes; carried_forward marks what no book confirmed';
COMMENT ON COLUMN ohlc_5m_filled.coverage_ratio IS 'Share of the window that was listened to; NULL: unknown, or the ticker was subscribed to by nobody';

-- A candle was known at an instant if valid_from <= it and it < valid_to, or valid_to is NULL. Coverage alone
-- supersedes nothing: the ratio is the one that was known last.
CREATE VIEW ohlc_5m_known AS
SELECT
    ticker, market, event_time, event_date, open_price, high_price, low_price, close_price, prev_close_price,
    twap_price, book_count, first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at,
    quoted_ms, built_at AS valid_from, NULL::timestamptz AS valid_to
FROM ohlc_5m_ticker
UNION ALL
SELECT
    ticker, market, event_time, event_date, open_price, high_price, low_price, close_price, prev_close_price,
    twap_price, book_count, first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at,
    quoted_ms, valid_from, valid_to
FROM ohlc_5m_history;
COMMENT ON VIEW ohlc_5m_known IS 'Every candle that ever was, with the time [valid_from, valid_to) in which it was what was known; valid_to is NULL of what still is';
