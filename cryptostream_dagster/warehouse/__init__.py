"""Postgres: connections, versioned schema, locks, the candle writer and the questions people ask.

Belongs here: everything that knows a table of the warehouse by name, but for the catalog's own rows
(`catalog`). Does not belong here: Dagster, DuckDB, the lake.
"""
