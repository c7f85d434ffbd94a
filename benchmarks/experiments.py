"""What each part is worth: trials on real data (COGNATE_DATA_DIR), at a size two CPU cores can repeat.

    make bench-experiments ARGS="RESULTS.jsonl [STUDY ...]"

A trial is a configuration, an optimizer with its learning rates, and a seed; its outcome is held-out loss. Every outcome is
one line of RESULTS.jsonl and is never computed twice, so an interrupted study goes on where it was.

    optimizers  each rival's matrix and embedding rates tuned by the same search, then three seeds of each at its best
    ablation    plain attention, + memory, + recursion, both, at equal steps and at equal time; and what halting saves
    late        ten epochs over little data, where Grokfast promises most
    report      the numbers of the Phase 1 report
    time        the optimizers at equal time instead of equal steps
    seeds       six seeds of the optimizers whose difference is no larger than the noise
    momentum    MuGrokfast's, 0.9 and 0.95: in the short run, in the late epochs and on the wider model
    recursion   how it is trained: through all recursions or the last, and on how many tokens early ones are scored
    wide        the optimizers again on a model of four times the parameters for twice the steps
    adamw, muon, ..., wide-adamw, ...   one optimizer of the first or the last
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.trials import LITTLE_DATA, ONE_LOOK, SEEDS, Book, Trial, paces

WIDE = (("d_model", 256), ("n_layers", 4), ("d_ff", 768), ("trm_d_ff", 768))  # 4.0 million parameters
WIDE_STEPS = 1600
MORE_SEEDS = (1, 2, 3, 4, 5, 6)


def tune(book: Book, start: Trial) -> Trial:
    """Double or halve either rate as long as that lowers the held-out loss: no neighbour of the answer is better."""
    best = start
    while True:
        around = [
            replace(best, matrix_lr=best.matrix_lr * matrix, embedding_lr=best.embedding_lr * embedding)
            for matrix, embedding in ((2, 1), (0.5, 1), (1, 2), (1, 0.5))
        ]
        better = min(around, key=lambda trial: book.of(trial).val_loss)
        if book.of(better).val_loss >= book.of(best).val_loss:
            return best
        best = better


STARTS = {
    "adamw": (2e-3, 2e-2), "muon": (5e-3, 1e-2), "mugrokfast-0": (5e-3, 1e-2), "mugrokfast-0.3": (5e-3, 1e-2),
    "mugrokfast-2": (5e-3, 2e-2), "heavyball": (2e-2, 1e-2),
}  # fmt: skip
WIDE_STARTS = {"adamw": (4e-3, 1e-2), "muon": (2.5e-3, 1e-2), "mugrokfast-0": (2.5e-3, 1e-2)}


Study = Callable[[Book], None]


def tuned(start: Trial) -> Study:
    def study(book: Book) -> None:
        best = tune(book, start)
        mean, deviation = book.mean(best)
        print(f"{best.optimizer}: {mean:.4f} +- {deviation:.4f} at {best.matrix_lr:g}, {best.embedding_lr:g}", flush=True)

    return study


ONE_OPTIMIZER = {name: tuned(Trial(name, *rates, model=ONE_LOOK)) for name, rates in STARTS.items()}
WIDE_OPTIMIZER = {
    f"wide-{name}": tuned(Trial(name, *rates, steps=WIDE_STEPS, model=ONE_LOOK + WIDE)) for name, rates in WIDE_STARTS.items()
}


def each(parts: Mapping[str, Study]) -> Study:
    def study(book: Book) -> None:
        for part in parts.values():
            part(book)

    return study


# The halting head learns beside the model, which learns nothing from it: what halting is worth is seen in Outcome.halting.
PARTS = {
    "plain": (("ltm", False), ("trm", False), ("act", False)),
    "+ memory": (("trm", False), ("act", False)),
    "+ recursion": (("ltm", False),),
    "+ memory + recursion": (),
}
DELTAS = (0.05, 0.5)  # besides reasoning's 0: of memory and of speed


def ablation(book: Book) -> None:
    best = tune(book, Trial("mugrokfast-0", *STARTS["mugrokfast-0"], model=ONE_LOOK))
    for seed in SEEDS:  # a study that is cut short has compared all parts on the first seed
        for model in PARTS.values():
            book.of(replace(best, model=model, seed=seed))
    trials = {name: replace(best, model=model) for name, model in PARTS.items()}
    for name, trial in trials.items():
        print(name, book.mean(trial), flush=True)
    for delta in (0.0, *DELTAS):
        for seed in SEEDS:
            halting = book.of(replace(best, model=(("act_delta", delta),) if delta else (), seed=seed)).halting
            print("halting", delta, seed, halting, flush=True)
    equal_time(book, "ablation", trials)


def optimizers_in_time(book: Book) -> None:
    best = {name: tune(book, Trial(name, *rates, model=ONE_LOOK)) for name, rates in STARTS.items()}
    equal_time(book, "optimizers", best)


def equal_time(book: Book, study: str, trials: dict[str, Trial]) -> None:
    """The trials again, each with as many steps as there is time for in which the slowest does its own."""
    step_ms = book.note(f"{study}: ms a step", lambda: paces(trials))
    for name, trial in trials.items():
        assert trial.steps is not None
        longer = replace(trial, steps=round(trial.steps * max(step_ms.values()) / step_ms[name]))
        print(name, "equal time", longer.steps, book.mean(longer), flush=True)


LATE = ("mugrokfast-0", "mugrokfast-0.3", "mugrokfast-2", "muon")


def late(book: Book) -> None:
    """Each at the rates that are its best in the short run."""
    best = {name: tune(book, Trial(name, *STARTS[name], model=ONE_LOOK)) for name in LATE}
    trials = {name: replace(trial, steps=None, datasets=LITTLE_DATA) for name, trial in best.items()}
    for seed in SEEDS:
        for trial in trials.values():
            book.of(replace(trial, seed=seed))
    for name, trial in trials.items():
        print("late", name, book.mean(trial), [round(book.of(replace(trial, seed=seed)).best_loss, 4) for seed in SEEDS], flush=True)


def seeds(book: Book) -> None:
    """Twice the seeds, for differences of the size of their noise."""
    best = {name: tune(book, Trial(name, *STARTS[name], model=ONE_LOOK)) for name in ("mugrokfast-0", "muon", "adamw")}
    for seed in MORE_SEEDS:
        for trial in best.values():
            book.of(replace(trial, seed=seed))
    for name, trial in best.items():
        print(name, book.mean(trial, MORE_SEEDS), flush=True)


def momentum(book: Book) -> None:
    short = Trial("mugrokfast-0", *STARTS["mugrokfast-0"], model=ONE_LOOK)
    wide = Trial("mugrokfast-0", *WIDE_STARTS["mugrokfast-0"], steps=WIDE_STEPS, model=ONE_LOOK + WIDE)
    for name, trial in {"short": short, "late": replace(short, steps=None, datasets=LITTLE_DATA), "wide": wide}.items():
        for options in ((("momentum", 0.9),), ()):
            print("momentum", name, options, book.mean(replace(trial, optimizer_options=options)), flush=True)


def recursion(book: Book) -> None:
    best = Trial("mugrokfast-0", *STARTS["mugrokfast-0"])
    settings: tuple[tuple[tuple[str, Any], ...], ...] = (
        (), (("supervised_fraction", 1.0),), (("supervised_fraction", 0.0625),), (("bptt", "last"),)
    )  # fmt: skip
    for seed in SEEDS:
        for model in settings:
            print("recursion", model, seed, book.of(replace(best, model=model, seed=seed)).val_loss, flush=True)


def report(book: Book) -> None:
    """The numbers of the Phase 1 report, which were not tuned for this model or data."""
    trial = Trial("mugrokfast-0.3", 1e-3, 1e-3, model=ONE_LOOK, optimizer_options=(("adamw_lr", 1e-3),))
    print("the report's numbers", book.mean(trial), flush=True)


STUDIES: dict[str, Study] = {
    "optimizers": each(ONE_OPTIMIZER),
    "ablation": ablation,
    "late": late,
    "report": report,
    "time": optimizers_in_time,
    "seeds": seeds,
    "momentum": momentum,
    "recursion": recursion,
    "wide": each(WIDE_OPTIMIZER),
    **ONE_OPTIMIZER,
    **WIDE_OPTIMIZER,
}


def main() -> None:
    path, *names = sys.argv[1:]
    book = Book(Path(path))
    for name in names or ("optimizers", "ablation", "late"):
        STUDIES[name](book)


if __name__ == "__main__":
    main()
