-- What each section that was heard before the window said last.
SELECT DISTINCT ON (section) section, tickers
FROM subscription
WHERE window_start < %(start)s AND window_start >= %(since)s
ORDER BY section, window_start DESC
