"""From raw lines to Parquet, and from Parquet to candles: DuckDB and Arrow.

Belongs here: the declared schemas and the SQL that makes them. Does not belong here: Postgres (`warehouse`),
which objects make a window (`catalog`), Dagster.
"""
