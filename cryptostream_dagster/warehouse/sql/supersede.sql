-- Candles that are not what they should be leave the table for the history. Coverage alone supersedes nothing.
WITH gone AS (
    DELETE FROM ohlc_5m_ticker AS o
    WHERE o.event_time = %(start)s AND o.event_date = %(event_date)s AND NOT EXISTS (
        SELECT FROM fresh AS f
        WHERE f.ticker = o.ticker
        AND (
            f.market, f.open_price, f.high_price, f.low_price, f.close_price, f.prev_close_price, f.twap_price,
            f.book_count, f.first_book_at, f.last_book_at, f.mean_spread_bps
        ) IS NOT DISTINCT FROM (
            o.market, o.open_price, o.high_price, o.low_price, o.close_price, o.prev_close_price, o.twap_price,
            o.book_count, o.first_book_at, o.last_book_at, o.mean_spread_bps
        )
    )
    RETURNING o.*
)
INSERT INTO ohlc_5m_history SELECT gone.*, gone.built_at, %(now)s FROM gone
