"""Commands for whoever looks after a lake: audit, gc, replay, retire (`docs/tools.md`).

Belongs here: what needs the lake and Kafka, or a person's eyes. Does not belong here: what a lake's contract
says (`lake/`), and anything that a running producer or consumer does.
"""
