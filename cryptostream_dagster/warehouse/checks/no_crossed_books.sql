-- No book has its best bid above its best ask. Those that do are in no candle.
SELECT
    coalesce(sum(crossed_count), 0)::bigint AS violations,
    string_agg(format('%%s %%s', ticker, crossed_count), ', ' ORDER BY crossed_count DESC, ticker) AS detail
FROM coverage_5m
WHERE window_start = %(start)s AND crossed_count > 0
