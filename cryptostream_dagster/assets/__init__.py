"""The three assets: thin Dagster shells over `steps`, and what people see of them in the UI."""
