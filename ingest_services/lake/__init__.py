"""The raw lake's contract: paths, object stores, the commit chain, coverage.

Belongs here: everything that a writer and a reader of the lake must agree on (`docs/commit-chain.md` is the
page). Does not belong here: Kafka, Dagster, and any decision about when to write.
"""
