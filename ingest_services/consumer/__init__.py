"""From Kafka to the raw lake: batching, cutting, committing.

Belongs here: when to cut and what to claim. Does not belong here: what a lake looks like (`lake/`), what a
frame says (`upbit/`).
"""
