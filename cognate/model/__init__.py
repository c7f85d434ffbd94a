"""The model: `Cognate` and what it returns. Start reading at cognate.py."""

from cognate.model.cognate import NOT_COUNTED, Cognate, Loss, Measurements, Output

__all__ = ["NOT_COUNTED", "Cognate", "Loss", "Measurements", "Output"]
