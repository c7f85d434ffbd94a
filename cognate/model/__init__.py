"""The model: `Cognate` and what it returns. Start reading at cognate.py."""

from cognate.model.cognate import Cognate, Continuation, Output
from cognate.model.generate import Generation, NewToken
from cognate.model.loss import NOT_COUNTED, Loss, Measurements
from cognate.model.state import State

__all__ = ["NOT_COUNTED", "Cognate", "Continuation", "Generation", "Loss", "Measurements", "NewToken", "Output", "State"]
