UPDATE coverage_5m AS v
SET
    book_count = coalesce(s.book_count, 0),
    one_sided_count = coalesce(s.one_sided_count, 0),
    crossed_count = coalesce(s.crossed_count, 0)
FROM coverage_5m AS c
LEFT JOIN stage AS s USING (ticker)
WHERE c.window_start = %(start)s
AND v.window_start = c.window_start
AND v.ticker = c.ticker
AND (v.book_count, v.one_sided_count, v.crossed_count) IS DISTINCT FROM (
    coalesce(s.book_count, 0), coalesce(s.one_sided_count, 0), coalesce(s.crossed_count, 0)
)
