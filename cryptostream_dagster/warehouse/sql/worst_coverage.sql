-- The least covered of the subscribed tickers, and the mean over all of them.
SELECT ticker, avg(coverage_ratio) AS ratio, avg(avg(coverage_ratio)) OVER ()
FROM coverage_5m
WHERE window_start >= %(since)s AND subscribed AND coverage_ratio IS NOT NULL
GROUP BY ticker
ORDER BY ratio, ticker COLLATE "C"
LIMIT %(limit)s
