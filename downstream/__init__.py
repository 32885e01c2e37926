"""SUPERB's ten tasks (arXiv 2105.01051): each module here is one task; what they share lies in the folders beside them.

``core`` is how a task meets an upstream and the training loop, ``corpora`` reads what the tasks are trained on, ``heads``
are their models and ``metrics`` their figures.
"""
