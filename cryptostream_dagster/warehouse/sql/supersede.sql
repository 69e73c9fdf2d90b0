-- Candles that are not what they should be leave the table for the history; what is known of their coverage is part
-- of them, because people choose candles by it.
WITH gone AS (
    DELETE FROM ohlc_5m_ticker AS o
    WHERE o.event_time = %(start)s AND o.event_date = %(event_date)s AND NOT EXISTS (
        SELECT FROM fresh AS f
        WHERE f.ticker = o.ticker
        AND (
            f.market, f.open_price, f.high_price, f.low_price, f.close_price, f.prev_close_price, f.twap_price,
            f.book_count, f.first_book_at, f.last_book_at, f.mean_spread_bps, f.coverage_ratio, f.quoted_ms
        ) IS NOT DISTINCT FROM (
            o.market, o.open_price, o.high_price, o.low_price, o.close_price, o.prev_close_price, o.twap_price,
            o.book_count, o.first_book_at, o.last_book_at, o.mean_spread_bps, o.coverage_ratio, o.quoted_ms
        )
    )
    RETURNING o.*
)
INSERT INTO ohlc_5m_history (
    ticker, market, event_time, event_date, open_price, high_price, low_price, close_price, prev_close_price,
    twap_price, book_count, first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at,
    quoted_ms, valid_from, valid_to
)
SELECT
    ticker, market, event_time, event_date, open_price, high_price, low_price, close_price, prev_close_price,
    twap_price, book_count, first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at,
    quoted_ms, built_at, %(now)s
FROM gone
