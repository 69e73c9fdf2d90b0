-- For how long of its window a mid prevailed: the weight of a candle's means when windows are put together.
-- NULL in candles that were built before; the views take those for whole windows.
ALTER TABLE ohlc_5m_ticker ADD COLUMN quoted_ms bigint;
ALTER TABLE ohlc_5m_history ADD COLUMN quoted_ms bigint;
COMMENT ON COLUMN ohlc_5m_ticker.quoted_ms IS 'For how long a mid prevailed, ms: the weight of twap_price and mean_spread_bps';
