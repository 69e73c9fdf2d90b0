INSERT INTO market AS m (
    market, ticker, korean_name, english_name, warning, cautions, tick_size, listed, first_seen, last_seen, valid_from
)
SELECT
    market, ticker, korean_name, english_name, warning, cautions, tick_size, true, %(now)s, %(now)s, %(now)s
FROM told
ORDER BY market
ON CONFLICT (market) DO UPDATE
SET
    korean_name = excluded.korean_name,
    english_name = excluded.english_name,
    warning = excluded.warning,
    cautions = excluded.cautions,
    tick_size = excluded.tick_size,
    listed = true,
    last_seen = excluded.last_seen,
    valid_from = CASE
        WHEN m.listed
        AND (m.korean_name, m.english_name, m.warning, m.cautions, m.tick_size) IS NOT DISTINCT FROM (
            excluded.korean_name, excluded.english_name, excluded.warning, excluded.cautions, excluded.tick_size
        )
        THEN m.valid_from
        ELSE excluded.valid_from
    END
