"""The catalog: what the lake's commit chain says, in Postgres, by window. `docs/windows.md` is the page.

Belongs here: syncing, completeness, sealing, coverage of a window, and which windows want building. Does not
belong here: Dagster, and what is built from a sealed window (`transforms`, `warehouse`).
"""
