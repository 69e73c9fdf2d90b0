SELECT window_start, ticker, subscribed, coverage_ratio, book_count, one_sided_count, crossed_count
FROM coverage_5m
WHERE (%(ticker)s::text IS NULL OR ticker = %(ticker)s)
AND (%(since)s::timestamptz IS NULL OR window_start >= %(since)s)
AND (%(until)s::timestamptz IS NULL OR window_start < %(until)s)
ORDER BY window_start, ticker COLLATE "C"
