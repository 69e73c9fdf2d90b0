-- The next window may have been built first: its prev_close_price is this window's close.
INSERT INTO ohlc_5m_history (
    ticker, market, event_time, event_date, open_price, high_price, low_price, close_price, prev_close_price,
    twap_price, book_count, first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at,
    quoted_ms, valid_from, valid_to
)
SELECT
    o.ticker, o.market, o.event_time, o.event_date, o.open_price, o.high_price, o.low_price, o.close_price,
    o.prev_close_price, o.twap_price, o.book_count, o.first_book_at, o.last_book_at, o.mean_spread_bps,
    o.coverage_ratio, o.version, o.built_at, o.quoted_ms, o.built_at, %(now)s
FROM ohlc_5m_ticker AS o
LEFT JOIN ohlc_5m_ticker AS p ON p.ticker = o.ticker AND p.event_time = %(start)s
WHERE o.event_time = %(next_start)s AND o.prev_close_price IS DISTINCT FROM p.close_price
