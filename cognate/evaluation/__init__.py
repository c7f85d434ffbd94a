"""Evaluation: what a model can do, on rows it has never seen, said with all that is needed to judge the figure.

Read in this order: items.py (which rows, as problems), scoring.py (what the model says of them), answers.py (right or wrong),
tasks.py (how each of the 14 datasets is measured), suite.py (the report), baseline.py (the untrained model), overlap.py (what the
training text shares with the items), referee.py (the same by lm-evaluation-harness), diversity.py (how models of a group differ),
writing.py (what the model writes after held-out prompts, to be read and not to be scored).
cognate/sandbox.py runs generated code.
"""
