"""What one process of the server holds and forgets at its end: budgets, limits, counters, caches, worker processes.

Nothing here is stored. Several nodes on one database have one each.
"""
