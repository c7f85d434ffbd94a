"""Cognate: a small recursive language model with long-term memory, its optimizer and its training.

Useful alone (`cognate train quickstart`); knows nothing of the service in `app/`.
Start with config.py (what can be set), then model/cognate.py (what is trained) and training/loop.py (how).
"""

__version__ = "0.1.0"
