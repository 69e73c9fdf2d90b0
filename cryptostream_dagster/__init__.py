"""CryptoStream's Dagster half: raw lake → Parquet → candles in Postgres, and what people use to look at them."""
