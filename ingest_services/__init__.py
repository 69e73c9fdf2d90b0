"""CryptoStream's ingest half: exchange → Kafka → raw lake. Runs without Dagster and without Postgres."""
