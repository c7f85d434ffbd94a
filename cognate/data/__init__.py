"""What Cognate is trained on: from rows of public datasets to packed batches of tokens.

Read in this order: sources.py (the 14 datasets), formats.py (row -> prompt, answer), curriculum.py (stages, what is
held out), rows.py (which rows a run gets), augment.py (what is made from them on request), corpus.py (load_corpus), batches.py
(packing), choices.py (multiple choice as a choice). The disk is touched by files.py, cache.py and corpus.py, and programs are run by
mutate.py; all the rest is pure.

Source: docs/model.md, section 3.
"""
