"""State that one process holds and loses at its end: budgets, limits, counters, caches, worker processes.

Nothing here is stored. If several nodes share a database, each has its own.
"""
