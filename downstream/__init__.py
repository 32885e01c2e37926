"""SUPERB's ten tasks (arXiv 2105.01051): each module here is one; what they share is in the folders beside them.

``core`` is how a task meets an upstream and the training loop, ``corpora`` reads what tasks are trained on, ``heads``
are their models, ``metrics`` their figures of merit, ``pictures`` what people look at.
"""
