"""Generated inputs for `prepare`, and a judge of what becomes of them.

    texts.py      what stands in the rows: words, and what has broken other tools
    generated.py  rows of every format, good ones and hostile ones; what the good ones say is known
    stored.py     rows -> bytes of a file, of every kind
    mutated.py    files that were whole, with damage
    settings.py   what a recipe may say of them
    case.py       a case: files and settings, as plain data
    strategies.py cases of these
    judge.py      runs `prepare` on a case, and says what it did that it must never do
    __main__.py   draws cases and judges them, in a process of its own
    rounds.py     starts it: once to draw and judge, and again with another hash seed to judge the same

`test_generated.py` judges a few hundred cases, `benchmarks/attack.py` thousands.
"""
