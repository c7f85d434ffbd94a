"""Levers that act within the loop (docs/levers.md): each does what it says, resumes to the bit, and is nothing when it is off."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cognate.cli import app
from cognate.config import RunConfig, overlaid
from cognate.data.batches import IGNORED, TrainingBatches, validation_batches
from cognate.data.choices import ChoiceStream, Problem, lay_out
from cognate.data.corpus import Corpus, load_corpus
from cognate.evaluation.scoring import likelihoods
from cognate.events import Kind
from cognate.model import Cognate
from cognate.model.layers import drop
from cognate.rundir import Journal, Places, RunDir
from cognate.training import choosing as choosing_part
from cognate.training.average import NotAlike, WeightAverage, soup
from cognate.training.checkpoint import Position, load_model
from cognate.training.choosing import choose
from cognate.training.execution import warns_only
from cognate.training.loop import train
from cognate.training.measure import validate
from cognate.training.reporter import Reporter
from tests.training.runs import CommandAt, attempt_at, digests, events, new_run, reproducible_rows, rows, tiny

sys.path.append(str(Path(__file__).parents[1] / "data"))
from data_folders import write_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), ["gsm8k", "arc_easy", "piqa"], n_train=40)


def real(**training: Any) -> RunConfig:
    return tiny(data={"source": "real"}, training=training)


# --- the loss over candidates -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(real(), folder, None)


@pytest.fixture
def model() -> Cognate:
    torch.manual_seed(3)
    net = Cognate(real().model)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return net


def test_what_is_trained_is_what_is_evaluated(model: Cognate, corpus: Corpus) -> None:
    """The same log-likelihoods as in the evaluation, though those come from a cache and these with a gradient."""
    some = [Problem("Which is wet?\nAnswer:", (" A. iron", " B. water"), 1), Problem("So?\nAnswer:", (" yes", " no"), 0)]
    made = lay_out(some, corpus.tokenizer, 64)
    nats = model.eval().sequence_nats(made.tokens, made.targets)
    found = likelihoods(model, corpus.tokenizer, [each.prompt for each in some], [each.candidates for each in some])
    assert (-nats).tolist() == pytest.approx([each.nats for few in found for each in few], abs=1e-3)
    nats.sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.backbone.named_parameters())


def test_how_many_rows_go_through_at_once_changes_nothing(model: Cognate, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """And there are never more, not even where a single problem has: at 1, its two candidates are apart."""
    widest, nats = [], Cognate.sequence_nats
    monkeypatch.setattr(Cognate, "sequence_nats", lambda self, *both: (widest.append(len(both[0])), nats(self, *both))[1])
    config = real(choice_weight=0.5, choice_problems=7)
    gradients, losses = [], []
    for at_once in (1, 4, 100):
        model.zero_grad()
        stream = ChoiceStream(corpus, config.training, seed=1)
        chosen = choose(model, stream, config.training, Position(), at_once, CPU)
        assert chosen is not None
        assert max(widest) <= at_once
        losses.append([float(chosen.loss), float(chosen.accuracy)])
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-3, atol=1e-6)


def test_the_gradient_has_the_weight(model: Cognate, corpus: Corpus) -> None:
    norms = []
    for weight in (0.5, 1.0):
        model.zero_grad()
        config = real(choice_weight=weight)
        choose(model, ChoiceStream(corpus, config.training, seed=1), config.training, Position(), 8, CPU)
        norms.append(float(model.embedding.weight.grad.norm()))  # type: ignore[union-attr]
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-4)


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory, cache: Path, folder: Path) -> RunDir:
    run = new_run(tmp_path_factory.mktemp("choosing") / "run", real(choice_weight=0.5, max_steps=16))
    assert attempt_at(run, cache=cache, data_dir=folder) is Kind.FINISHED
    return run


def test_the_loss_is_the_sum_of_its_parts(choosing: RunDir) -> None:
    for event in rows(choosing)[1:]:
        values, progress = event.data["values"], event.data["progress"]
        parts = values["loss_ce"] + values["loss_act"] + values["loss_gate"] + 0.5 * progress["loss_choice"]
        assert values["loss"] == pytest.approx(parts, rel=1e-4)
        assert 0 <= progress["choice_accuracy"] <= 1


def test_choosing_is_learned(choosing: RunDir) -> None:
    """The rows of the test folder always have one letter right."""
    losses = [event.data["progress"]["loss_choice"] for event in rows(choosing)[1:]]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_choosing_resumes_to_the_bit(choosing: RunDir, cache: Path, folder: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", choosing.config())
    assert attempt_at(run, CommandAt(run, "pause", 7), cache, folder) is Kind.PAUSED
    assert attempt_at(run, cache=cache, data_dir=folder) is Kind.FINISHED
    assert digests(run, 16) == digests(choosing, 16)
    assert reproducible_rows(run) == reproducible_rows(choosing)


def test_choosing_is_as_strict_as_the_rest_of_a_step(cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tried before, as the batch's passes are. torch is set as a worker on a GPU sets it."""
    made, how = choosing_part._pass, set()

    def watched(*given: Any) -> torch.Tensor:
        how.add((sys._getframe(1).f_code.co_name, warns_only()))
        return made(*given)

    monkeypatch.setattr(choosing_part, "_pass", watched)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        attempt = new_run(tmp_path / "run", real(choice_weight=0.5, max_steps=1)).attempt(1)
        attempt.create()
        train(attempt.run, Reporter(Journal(attempt)), lambda: None, Places(folder, cache), CPU)
    finally:
        torch.use_deterministic_algorithms(False)
    assert how == {("try_one", False), ("choose", False)}


def test_without_choices_there_is_a_warning(cache: Path, tmp_path: Path) -> None:
    plain, weighted = (new_run(tmp_path / str(w), tiny(training={"max_steps": 4, "choice_weight": w})) for w in (0.0, 1.0))
    for run in (plain, weighted):
        attempt_at(run, cache=cache)
    assert any("choice_weight has no effect" in event.data["message"] for event in events(weighted) if event.kind is Kind.WARNING)
    assert reproducible_rows(weighted) == reproducible_rows(plain)
    assert not any("loss_choice" in event.data["progress"] for event in rows(plain))


# --- dropout ------------------------------------------------------------------------------------------------


def test_a_token_is_counted_from_its_datasets_first_epoch(tmp_path: Path) -> None:
    """arc_challenge joins in epoch 4: there gsm8k is seen for the fourth time, and it for the first."""
    folder = write_folder(tmp_path, ["gsm8k", "arc_challenge"])
    corpus = load_corpus(real(), folder, None)
    batches = TrainingBatches(corpus, real().training, seed=1)
    for epoch in (1, 3, 4, 6):
        for index in range(batches.steps_in_epoch(epoch)):
            batch, seen = batches.batch(epoch, index), batches.times_seen(epoch, index)
            assert torch.equal(seen > 0, batch.targets != IGNORED)
            for row in range(len(seen)):
                for document in batch.documents[row].unique():
                    own = batch.documents[row] == document
                    text = corpus.tokenizer.decode(batch.tokens[row][own].tolist())
                    expected = epoch - 3 if "Why" in text else epoch
                    assert set(seen[row][own].tolist()) <= {expected, 0}


def test_dropped_channels_are_zero_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    x = torch.ones(2, 3, 40_000)
    rates = torch.tensor([[0.0, 0.5, 0.9], [0.25, 0.0, 0.1]])
    dropped = drop(x, rates)
    torch.testing.assert_close((dropped == 0).float().mean(-1), rates, atol=0.01, rtol=0)
    torch.testing.assert_close(dropped.mean(-1), torch.ones(2, 3), atol=0.03, rtol=0)
    assert torch.equal(dropped[0, 0], x[0, 0])


def test_a_rate_of_zero_changes_no_bit(model: Cognate) -> None:
    tokens = torch.randint(0, 400, (2, 24))
    losses = []
    for dropout in (None, torch.zeros(2, 24), torch.full((2, 24), 0.5)):
        torch.manual_seed(1)
        losses.append(float(model.loss(tokens, tokens.roll(-1, 1), dropout=dropout).loss_ce))
    assert losses[0] == losses[1] != losses[2]


def test_dropout_waits_for_the_second_time(cache: Path, tmp_path: Path) -> None:
    """Bit for bit the same up to the end of the first epoch, and not after it."""
    few = {"synthetic_problems": 100}
    runs = [
        new_run(tmp_path / str(rate), tiny(data=few, training={"batch_size": 16, "max_steps": 16, "dropout": rate})) for rate in (0.0, 0.3)
    ]
    for run in runs:
        attempt_at(run, cache=cache)
    plain, dropped = map(reproducible_rows, runs)
    first = next(event.data["steps_per_epoch"][0] for event in events(runs[0]) if event.kind is Kind.PLAN)
    assert first < 16
    assert all(plain[step]["loss_ce"] == dropped[step]["loss_ce"] for step in range(1, first + 1))
    assert all(plain[step]["loss_ce"] != dropped[step]["loss_ce"] for step in range(first + 1, 17))


def test_dropout_resumes_to_the_bit(cache: Path, tmp_path: Path) -> None:
    config = tiny(training={"dropout": 0.2, "dropout_from": 1})
    whole, cut = (new_run(tmp_path / name, config) for name in ("whole", "cut"))
    attempt_at(whole, cache=cache)
    attempt_at(cut, CommandAt(cut, "pause", 5), cache)
    attempt_at(cut, cache=cache)
    assert digests(cut, 12) == digests(whole, 12)


# --- the running mean of weights ----------------------------------------------------------------------------


def test_the_mean_follows_its_equation() -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 1.0)
    average = WeightAverage(net, 0.9, None)
    expected = 1.0
    for step in range(1, 200):
        torch.nn.init.constant_(net.weight, 1.0 + step)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (1.0 + step)
    with average.in_place():
        assert float(net.weight.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(net.weight.detach()) == 200.0


@pytest.fixture(scope="module")
def averaging(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> RunDir:
    run = new_run(tmp_path_factory.mktemp("averaging") / "run", tiny(training={"weight_ema": 0.9}))
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    return run


def test_the_mean_changes_what_is_validated_and_not_what_is_trained(averaging: RunDir, cache: Path, tmp_path: Path) -> None:
    plain = new_run(tmp_path / "run", tiny())
    attempt_at(plain, cache=cache)
    assert digests(plain, 12) == digests(averaging, 12)
    with_mean, without = (reproducible_rows(run) for run in (averaging, plain))
    assert with_mean[0] == without[0]
    assert with_mean[12]["val_loss"] != without[12]["val_loss"]
    assert {key: value for key, value in with_mean[12].items() if not key.startswith("val_")} == {
        key: value for key, value in without[12].items() if not key.startswith("val_")
    }
    assert not (plain.checkpoint(12) / "average.safetensors").exists()


def test_a_checkpoint_is_evaluated_with_the_mean(averaging: RunDir, cache: Path) -> None:
    """The val_loss that was reported is the one of the model that is loaded."""
    config = averaging.config()
    model, tokenizer = load_model(averaging.checkpoint(12))
    corpus = load_corpus(config, None, cache, tokenizer)
    held_out = validation_batches(corpus, config.training, config.data.validation_batches)
    assert validate(model, held_out, CPU)["val_loss"] == rows(averaging)[-1].data["values"]["val_loss"]


def test_the_mean_resumes_to_the_bit(averaging: RunDir, cache: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", averaging.config())
    attempt_at(run, CommandAt(run, "pause", 5), cache)
    attempt_at(run, cache=cache)
    assert reproducible_rows(run) == reproducible_rows(averaging)
    one, other = (load_file(each.checkpoint(12) / "average.safetensors") for each in (run, averaging))
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- the mean of several runs -------------------------------------------------------------------------------


def test_a_soup_is_the_mean_of_its_checkpoints(averaging: RunDir, tmp_path: Path) -> None:
    early, late = averaging.checkpoint(8), averaging.checkpoint(12)
    assert soup([early, late], tmp_path / "soup") == []
    mixed, tokenizer = load_model(tmp_path / "soup")
    models = [load_model(each)[0].state_dict() for each in (early, late)]
    for name, tensor in mixed.state_dict().items():
        torch.testing.assert_close(tensor, (models[0][name] + models[1][name]) / 2)
    assert tokenizer.digest == load_model(late)[1].digest


def test_a_soup_is_whole_or_not_there(averaging: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a disk that was full for a moment leaves a folder that is no checkpoint and is in the way of the next try."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr("cognate.training.checkpoint.write_weights", full)
        soup([averaging.checkpoint(8), averaging.checkpoint(12)], tmp_path / "soup")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_averaged_is_refused(averaging: RunDir, cache: Path, tmp_path: Path) -> None:
    others = {
        "width": tiny(model={"d_model": 64}),
        "words": tiny(model={"vocab_size": 300}),
        "parts": tiny(model={"ltm": False}),
    }
    for name, config in others.items():
        run = new_run(tmp_path / name, overlaid(config.model_dump(mode="json"), {"training": {"max_steps": 1}}))
        attempt_at(run, cache=cache)
        with pytest.raises(NotAlike, match={"width": "shapes", "words": "tokenizers", "parts": "architectures"}[name]):
            soup([averaging.checkpoint(12), run.checkpoint(1)], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_specialists_can_be_averaged_and_it_is_said_what_differs(averaging: RunDir, cache: Path, tmp_path: Path) -> None:
    """speed makes two recursions, the others three: their halting calibrations have other shapes."""
    tree = tiny(model={"recursions": 2}, training={"max_steps": 1}).model_dump(mode="json")
    run = new_run(tmp_path / "run", overlaid(tree, {"seed": 9}))
    attempt_at(run, cache=cache)
    made = CliRunner().invoke(
        app, ["average", str(averaging.path), str(run.path), "--output", str(tmp_path / "soup")], env={"COLUMNS": "200"}
    )
    assert made.exit_code == 0, made.output
    assert "different random weights" in made.stdout
    assert "halting.predicted is the first one's" in made.stdout
    load_model(tmp_path / "soup")
    again = CliRunner().invoke(app, ["average", str(averaging.path), str(run.path), "--output", str(tmp_path / "soup")])
    assert again.exit_code == 2
