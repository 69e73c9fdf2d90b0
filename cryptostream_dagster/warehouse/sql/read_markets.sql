SELECT
    market, ticker, korean_name, english_name, warning, cautions, tick_size, listed, first_seen, last_seen, valid_from
FROM market_known
WHERE CASE
    WHEN %(asof)s::timestamptz IS NULL THEN valid_to IS NULL
    ELSE valid_from <= %(asof)s AND coalesce(valid_to > %(asof)s, true)
END
ORDER BY market COLLATE "C"
