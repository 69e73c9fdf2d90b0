-- The newest version that a candle of each window was ever of.
SELECT event_time, max(version)
FROM (
    SELECT event_time, version FROM ohlc_5m_ticker
    UNION ALL
    SELECT event_time, version FROM ohlc_5m_history
) AS candle
GROUP BY event_time
