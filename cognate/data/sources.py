"""The 14 datasets, as data: where each comes from, which files hold it, how much is used and from which stage.

formats.py turns their rows into text; files.py finds and reads the files. Adding a dataset is a row here, its name in
cognate/config.py, a formatter, a task (evaluation/tasks.py), where the hub has it (hub.py), and a metric accuracy_..., which needs a
migration.

Layout of a data folder: <folder>/<split>.parquet with the hub's column names. Source: docs/model.md, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cognate.config import DatasetName

Category = Literal["math", "code", "science", "multi-hop", "commonsense", "language"]
Stage = Literal[1, 2, 3]

# Where the held-out text of a dataset comes from:
#   split  its own validation files
#   hash   5 % of its rows, chosen by their own text (there is no official validation split)
#   rest   the rows behind the limit (the only rows with an answer are those of one split)
HeldOut = Literal["split", "hash", "rest"]


@dataclass(frozen=True)
class Source:
    """One dataset. `train`, `validation` and `test` name splits, which are files of `folder`.

    A row of `validation` or `test` is an evaluation item: it is never trained on, in any dataset.
    `limit` is the largest number of training samples used, in the order of the files.
    """

    name: DatasetName
    category: Category
    hub: str
    folder: str
    stage: Stage
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    held_out: HeldOut = "split"
    limit: int | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return self.train + self.evaluation

    @property
    def evaluation(self) -> tuple[str, ...]:
        return self.validation + self.test


_ROWS: Final = (
    Source("gsm8k", "math", "openai/gsm8k (main)", "gsm8k", 1, ("train",), test=("test",), held_out="hash"),
    Source("svamp", "math", "ChilleD/SVAMP", "svamp", 1, ("train",), test=("test",), held_out="hash"),
    # Its one split is called validation and is all there is.
    Source("asdiv", "math", "EleutherAI/asdiv", "asdiv", 2, ("validation",), held_out="hash"),
    Source("mbpp", "code", "google-research-datasets/mbpp (full)", "mbpp", 1, ("train",), ("validation",), ("test",)),
    # The folder has no train file, and the test rows have no code: half of the validation rows are trained on.
    Source(
        "codexglue", "code", "google/code_x_glue_tc_text_to_code", "code_x_glue_tc_text_to_code", 3,
        ("validation",), test=("test",), held_out="rest", limit=1000,
    ),
    Source("arc_easy", "science", "allenai/ai2_arc (ARC-Easy)", "ai2_arc_easy", 1, ("train",), ("validation",), ("test",)),
    Source("arc_challenge", "science", "allenai/ai2_arc (ARC-Challenge)", "ai2_arc_challenge", 2, ("train",), ("validation",), ("test",)),
    Source("hotpotqa", "multi-hop", "hotpotqa/hotpot_qa (distractor)", "hotpot_qa", 3, ("train",), ("validation",), limit=10_000),
    Source("drop", "multi-hop", "ucinlp/drop", "drop", 3, ("train",), ("validation",), ("validation_rest",), limit=10_000),
    Source("strategyqa", "multi-hop", "tasksource/strategy-qa", "strategy_qa", 2, ("train",), ("validation",)),
    Source("piqa", "commonsense", "ybisk/piqa", "piqa", 1, ("train",), ("validation",)),
    Source("hellaswag", "commonsense", "Rowan/hellaswag", "hellaswag", 1, ("train",), ("validation",), limit=10_000),
    Source("boolq", "commonsense", "google/boolq", "boolq", 2, ("train",), ("validation",)),
    # A sample is a line that is not empty.
    Source(
        "wikitext", "language", "Salesforce/wikitext (wikitext-2-v1)", "wikitext_2_v1", 1,
        ("train",), ("validation",), ("test",), limit=5000,
    ),
)  # fmt: skip
SOURCES: Final[Mapping[DatasetName, Source]] = {source.name: source for source in _ROWS}
