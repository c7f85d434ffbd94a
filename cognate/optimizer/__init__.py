"""The optimizer. Start reading at mugrokfast.py; the equations are in equations.py and polar.py."""

from cognate.optimizer.equations import grokfast_ema, muon_clip, qk_clip
from cognate.optimizer.kinds import kind_of
from cognate.optimizer.mugrokfast import MuGrokfast
from cognate.optimizer.polar import orthogonalize

__all__ = ["MuGrokfast", "grokfast_ema", "kind_of", "muon_clip", "orthogonalize", "qk_clip"]
