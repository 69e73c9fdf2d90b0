INSERT INTO ohlc_5m_ticker (
    ticker, market, event_time, event_date, open_price, high_price, low_price, close_price, prev_close_price,
    twap_price, book_count, first_book_at, last_book_at, mean_spread_bps, coverage_ratio, version, built_at,
    quoted_ms
)
SELECT * FROM fresh
ON CONFLICT (ticker, event_time, event_date) DO NOTHING
