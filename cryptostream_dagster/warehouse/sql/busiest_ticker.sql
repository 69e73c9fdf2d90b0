-- The ticker with the most books from one window to another: of two with as many, the first in the alphabet.
SELECT ticker
FROM ohlc_5m_ticker
WHERE event_time BETWEEN %(first)s AND %(last)s
GROUP BY ticker
ORDER BY sum(book_count) DESC, ticker COLLATE "C"
LIMIT 1
