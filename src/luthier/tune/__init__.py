"""`tune`: many runs of one recipe, compared with each other. What it finds is advice with an interval.

It stands above the rooms: every run in it is an ordinary run of `lifecycle.run`.
"""
