"""The exchange's protocol: requests, frames, markets, tick sizes and limits.

Belongs here: what Upbit says and how it says it (FACTS come from the wire where it and the documentation
differ). Does not belong here: sockets, retries, Kafka, anything that runs.
"""
