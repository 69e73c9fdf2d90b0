"""The assets: thin Dagster shells over plain functions, and what people see of them in the UI."""
