"""CryptoStream's Dagster half: raw lake → Parquet → candles, and what people look at them with."""
