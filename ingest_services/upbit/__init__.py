"""The exchange's protocol: requests, frames, markets, tick sizes, limits, and its REST API, asked politely.

Belongs here: what Upbit says and how it says it (FACTS come from the wire where it and the documentation
differ). Does not belong here: WebSockets, Kafka, what is done about an answer.
"""
