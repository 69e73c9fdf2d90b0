-- What a poll changes leaves for the history: values, a delisting, a listing once more.
INSERT INTO market_history (
    market, ticker, korean_name, english_name, warning, cautions, tick_size, listed, first_seen, last_seen,
    valid_from, valid_to
)
SELECT
    m.market, m.ticker, m.korean_name, m.english_name, m.warning, m.cautions, m.tick_size, m.listed, m.first_seen,
    m.last_seen, m.valid_from, %(now)s
FROM market AS m
LEFT JOIN told AS t USING (market)
WHERE m.listed <> (t.market IS NOT NULL)
OR (
    t.market IS NOT NULL
    AND (m.korean_name, m.english_name, m.warning, m.cautions, m.tick_size)
        IS DISTINCT FROM (t.korean_name, t.english_name, t.warning, t.cautions, t.tick_size)
)
