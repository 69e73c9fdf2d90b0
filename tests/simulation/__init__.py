"""Deterministic simulation of the writer: the real code, against a log, a store and a clock in memory.

One seed is one schedule: every decision comes from one `random.Random`, and time is a number. `python -m
tests.simulation SEED` replays one and prints its trace.
"""
