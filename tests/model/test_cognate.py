"""What must be true of the whole model (docs/model.md section 5)."""

import copy
import math
import pickle
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from cognate.config import ModelConfig
from cognate.model import NOT_COUNTED, Cognate
from cognate.model.layers import Linear, ternary
from cognate.model.loss import places_of, supervision_shares
from cognate.model.memory import Signals
from cognate.model.sight import block_mask
from cognate.optimizer import MuGrokfast

Build = Callable[..., Cognate]


def batch(rows: int = 3, time: int = 22, vocab: int = 300) -> tuple[Tensor, Tensor]:
    """Tokens, and documents of uneven lengths; ids repeat across rows, which must not matter."""
    documents = (torch.arange(time) >= torch.tensor([[5], [9], [13]])[:rows]).long() + (torch.arange(time) >= 17)
    return torch.randint(vocab, (rows, time)), documents


def next_tokens(tokens: Tensor, documents: Tensor) -> Tensor:
    """The next token of the same document."""
    targets = torch.full_like(tokens, NOT_COUNTED)
    same = documents[:, 1:] == documents[:, :-1]
    targets[:, :-1][same] = tokens[:, 1:][same]
    return targets


@pytest.fixture
def shipped() -> Cognate:
    torch.manual_seed(0)
    return Cognate(ModelConfig())


def test_the_default_model_has_exactly_the_parameters_of_the_table(shipped: Cognate) -> None:
    """docs/model.md section 1, part by part: a layer that silently grew or vanished shows here."""
    parts = {
        "embedding": lambda name: name == "embedding.weight",
        "attention": lambda name: ".attention." in name and "gain" not in name,
        "mlp": lambda name: name.startswith("backbone.") and ".mlp." in name,
        "memory": lambda name: ".memory." in name and ".gates." not in name,
        "memory gates": lambda name: ".memory.gates." in name,
        "gate": lambda name: ".gate." in name,
        "norms, gains, residual": lambda name: (
            name.startswith("backbone.blocks") and ("norm" in name or "gain" in name or "residual" in name)
        ),
        "recursion": lambda name: name.startswith("recursion.") and not ("norm" in name or name.endswith(("y0", "z0"))),
        "recursion's norms and start": lambda name: name.startswith("recursion.") and ("norm" in name or name.endswith(("y0", "z0"))),
        "final norm": lambda name: name == "backbone.norm.weight",
        "halting": lambda name: name.startswith("halting."),
    }
    counts = {part: sum(p.numel() for name, p in shipped.named_parameters() if belongs(name)) for part, belongs in parts.items()}
    assert counts == {
        "embedding": 10_485_760, "attention": 3_276_800, "mlp": 10_485_760, "memory": 983_040, "memory gates": 10_272, "gate": 5_160,
        "norms, gains, residual": 5_208, "recursion": 1_720_320, "recursion's norms and start": 1_600, "final norm": 320, "halting": 321,
    }  # fmt: skip
    assert sum(p.numel() for p in shipped.parameters()) == sum(counts.values()) == 26_974_561
    assert all(p.dtype == torch.float32 for p in shipped.parameters())


def test_the_first_loss_is_that_of_a_uniform_guess(shipped: Cognate) -> None:
    """A new model knows nothing, and must not claim to: ln 32768 = 10.397 (+0.1)."""
    tokens = torch.randint(32768, (2, 64))
    loss = shipped.eval().loss(tokens, tokens.roll(-1, 1))
    assert loss.loss_ce.item() == pytest.approx(math.log(32768), abs=0.1)
    assert loss.ce_last.item() == pytest.approx(math.log(32768), abs=0.1)


def test_every_parameter_of_the_shipped_model_gets_a_gradient() -> None:
    """Three steps in, because output projections start at zero and let nothing through before the first."""
    torch.manual_seed(0)
    model = Cognate(ModelConfig())
    tokens = torch.randint(32768, (2, 80))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(tokens, tokens.roll(-1, 1)).loss.backward()
        silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        optimizer.step()
    assert silent == []


def test_every_gradient_of_the_loss_is_its_slope(small: Build) -> None:
    """Against difference quotients along random signs: a part of the graph cut off gives a gradient, but the wrong one."""
    model = small(supervised_fraction=1.0)
    tokens, documents = batch()
    targets = next_tokens(tokens, documents)
    model.loss(tokens, targets, documents).loss.backward()

    def loss_at(parameter: Tensor, shift: Tensor) -> Tensor:
        with torch.no_grad():
            before = parameter.clone()
            parameter.add_(shift)
            loss = model.loss(tokens, targets, documents)
            parameter.copy_(before)
        return loss.loss_ce + loss.loss_gate  # without loss_act, whose targets jump

    for name, parameter in model.named_parameters():
        if name.startswith("halting."):
            continue
        assert parameter.grad is not None
        signs, step = torch.randn_like(parameter).sign(), 5e-4
        slope = (loss_at(parameter, step * signs) - loss_at(parameter, -step * signs)) / (2 * step)
        assert (parameter.grad * signs).sum().item() == pytest.approx(slope.item(), abs=0.05 * parameter.grad.norm().item() + 2e-3), name


@pytest.mark.parametrize("switches", [{}, {"ltm": False}, {"trm": False}, {"micro_steps": 1, "recursions": 5}], ids=str)
def test_a_future_token_leaves_earlier_logits_bit_equal(small: Build, switches: dict[str, object]) -> None:
    """The public predecessor's attention looked ahead; its loss measured copying."""
    model = small(**switches)
    tokens, documents = batch()
    before = model(tokens, documents).logits
    for position in (1, 8, 12, 21):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 300
        after = model(changed, documents).logits
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position], before[:, position])


def test_another_row_changes_nothing(small: Build) -> None:
    """The predecessor's memory leaked across the rows of a batch."""
    model = small()
    tokens, documents = batch()
    before = model(tokens, documents).logits
    changed = tokens.clone()
    changed[1] = torch.randint(300, (22,))
    after = model(changed, documents).logits
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])


@pytest.mark.parametrize("document", [0, 1, 2])
def test_another_packed_document_changes_nothing(small: Build, document: int) -> None:
    """Bit for bit, so that no sum, mask or state is shared between documents of a row."""
    model = small()
    tokens, documents = batch()
    before = model(tokens, documents).logits
    changed = torch.where(documents == document, torch.randint(300, tokens.shape), tokens)
    after = model(changed, documents).logits
    assert torch.equal(after[documents != document], before[documents != document])
    assert not torch.equal(after[documents == document], before[documents == document])


def test_without_document_ids_each_row_is_one_document(small: Build) -> None:
    model = small()
    tokens, _ = batch()
    assert torch.equal(model(tokens).logits, model(tokens, torch.full_like(tokens, 7)).logits)


def test_an_id_that_comes_back_is_a_new_document(small: Build) -> None:
    """Attention and memory must agree on what a document is: a run of one id."""
    model = small()
    tokens, _ = batch(rows=1)
    time = torch.arange(22)[None]
    returning, numbered = (time // 5) % 2, time // 5
    assert torch.equal(model(tokens, returning).logits, model(tokens, numbered).logits)


def test_the_packed_loss_is_the_unpacked_loss(small: Build) -> None:
    """Documents side by side in one row, or each in its own row with padding: the same loss and the same gradient."""
    model = small(supervised_fraction=1.0)
    tokens, documents = batch()
    targets = next_tokens(tokens, documents)
    runs = [(row, documents[row] == number) for row in range(3) for number in documents[row].unique()]
    alone = torch.zeros(len(runs), 22, dtype=torch.long)
    alone_targets, alone_documents = torch.full_like(alone, NOT_COUNTED), torch.ones_like(alone)
    for new_row, (row, run) in enumerate(runs):
        length = int(run.sum())
        alone[new_row, :length] = tokens[row, run]
        alone_targets[new_row, :length] = targets[row, run]
        alone_documents[new_row, :length] = 0

    losses, gradients = [], []
    for arguments in ((tokens, targets, documents), (alone, alone_targets, alone_documents)):
        model.zero_grad()
        loss = model.loss(*arguments)
        loss.loss.backward()
        losses.append(torch.stack([loss.loss_ce, loss.loss_act, loss.loss_gate, loss.ce_last]))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)
    packed, unpacked = model.validation_loss(tokens, targets, documents), model.validation_loss(alone, alone_targets, alone_documents)
    torch.testing.assert_close(packed, unpacked, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_naive_loss_of_the_logits(small: Build) -> None:
    """The chunked loss against logits and torch's own cross-entropy, each recursion with its weight."""
    model = small(supervision_weights=(0.05, 0.1, 1.0))
    tokens, documents = batch()
    targets = next_tokens(tokens, documents)
    thoughts, _ = model._think(tokens, *model._surroundings(tokens, model._segments(tokens, documents)))
    each = [functional.cross_entropy(model.logits(thought.answer).flatten(0, 1), targets.flatten()) for thought in thoughts]
    naive = functional.cross_entropy(model(tokens, documents).logits.flatten(0, 1), targets.flatten(), reduction="sum")
    total, count = model.validation_loss(tokens, targets, documents)
    torch.testing.assert_close(total, naive)
    assert count == (targets != NOT_COUNTED).sum()
    loss = model.loss(tokens, targets, documents)
    torch.testing.assert_close(loss.ce_last, naive / count)
    torch.testing.assert_close(loss.loss_ce, (0.05 * each[0] + 0.1 * each[1] + each[2]) / 1.15)


def test_the_early_share_of_the_loss_is_unbiased(small: Build) -> None:
    """Train mode scores early recursions on a quarter of the tokens; on average that is all of them."""
    model = small(supervised_fraction=0.25, supervision_weights=(1.0, 1.0, 1.0))
    tokens, documents = batch()
    targets = next_tokens(tokens, documents)
    with torch.no_grad():
        exact = model.loss(tokens, targets, documents)
        model.train()
        samples = [model.loss(tokens, targets, documents) for _ in range(200)]
    estimates = torch.stack([sample.loss_ce for sample in samples])
    assert estimates.std() > 0
    assert abs(estimates.mean() - exact.loss_ce) < 4 * estimates.std() / math.sqrt(200)
    assert all(torch.equal(sample.ce_last, exact.ce_last) for sample in samples)


def test_targets_that_are_not_counted_do_not_count(small: Build) -> None:
    """Padding may hold anything, and a batch with nothing to score has loss 0 and no gradient."""
    model = small(supervised_fraction=1.0)
    tokens, _ = batch()
    documents = torch.zeros_like(tokens)
    documents[:, 15:] = 1  # padding
    targets = next_tokens(tokens, documents)
    targets[:, 15:] = NOT_COUNTED
    noise = torch.where(documents == 1, torch.randint(300, tokens.shape), tokens)
    one, other = (model.loss(which, targets, documents, measure=True) for which in (tokens, noise))
    assert one.loss == other.loss
    elsewhere = targets.masked_fill(targets == NOT_COUNTED, -1)  # as other libraries have it
    assert model.loss(tokens, elsewhere, documents).loss == one.loss
    assert model.validation_loss(tokens, elsewhere, documents) == model.validation_loss(tokens, targets, documents)
    assert one.measurements is not None
    assert one.measurements == other.measurements

    nothing = model.loss(tokens, torch.full_like(tokens, NOT_COUNTED), documents, measure=True)
    nothing.loss.backward()
    assert nothing.loss == 0
    assert nothing.measurements is None
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("weights", "recursions", "shares"),
    [
        ((0.05, 0.1, 1.0), 3, [0.05 / 1.15, 0.1 / 1.15, 1 / 1.15]),
        ((0.05, 0.1, 1.0), 2, [0.1 / 1.1, 1 / 1.1]),
        ((0.05, 0.1, 1.0), 1, [1.0]),
        ((1.0, 3.0), 4, [1 / 6, 1 / 6, 1 / 6, 3 / 6]),
    ],
)
def test_the_last_supervision_weights_apply(weights: tuple[float, ...], recursions: int, shares: list[float]) -> None:
    assert supervision_shares(weights, recursions) == pytest.approx(shares)


@pytest.mark.parametrize("switched_off", [("ltm",), ("trm",), ("act",), ("ltm", "trm", "act")], ids="+".join)
def test_a_part_that_is_off_is_absent(small: Build, switched_off: tuple[str, ...]) -> None:
    """No parameters, no loss, no measurements: an ablation must not keep half of what it removed."""
    model = small(**dict.fromkeys(switched_off, False)).train()
    owners = {"ltm": (".memory.", ".gate."), "trm": ("recursion.", "halting."), "act": ("halting.",)}
    names = [name for name, _ in model.named_parameters()]
    tokens, documents = batch()
    loss = model.loss(tokens, next_tokens(tokens, documents), documents, measure=True)
    loss.loss.backward()
    assert not [name for part in switched_off for owner in owners[part] for name in names if owner in name]
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert loss.measurements is not None
    halting, memory = not {"trm", "act"} & set(switched_off), "ltm" not in switched_off
    assert (loss.loss_act > 0) == (loss.measurements.act_avg_halting_steps is not None) == halting
    assert (loss.loss_gate < 0) == (loss.measurements.ltm_memory_usage is not None) == memory


def test_measuring_changes_neither_loss_nor_gradient_nor_randomness(small: Build) -> None:
    model = small().train()
    tokens, documents = batch()
    results = []
    for measure in (False, True):
        model.zero_grad()
        torch.manual_seed(5)
        loss = model.loss(tokens, next_tokens(tokens, documents), documents, measure=measure)
        loss.loss.backward()
        assert (loss.measurements is not None) == measure
        results.append([loss.loss, torch.rand(1), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_is_measured_is_what_the_model_did(small: Build) -> None:
    """Every measurement, token by token: depths and probabilities as calibrated, memories by their recurrence, the gates' values."""
    model = small(act_threshold=0.2, surprise_threshold=1.2)
    tokens, documents = batch()
    targets = next_tokens(tokens, documents)
    targets[0, 12:] = NOT_COUNTED  # whose memory is then looked at in the middle of a document
    gates: list[tuple[Tensor, Tensor]] = []
    memories: list[Signals] = []
    for block in model.backbone.blocks:
        block.gate.register_forward_hook(lambda _, __, out: gates.append(out[1:]))
        block.memory.register_forward_hook(lambda _, __, out: memories.append(out[1]))
    model.halting.predicted.copy_(torch.tensor([0.3, 0.4]))
    model.halting.observed.copy_(torch.tensor([0.2, 0.7]))
    loss = model.loss(tokens, targets, documents, measure=True)
    measured = loss.measurements
    gates, memories = gates[:2], memories[:2]
    thoughts, _ = model._think(tokens, *model._surroundings(tokens, model._segments(tokens, documents)))
    places = (targets != NOT_COUNTED).nonzero().tolist()

    probabilities, depths = [], []
    for row, time in places:
        each = []
        for number, thought in enumerate(thoughts[:-1]):
            observed, predicted = (model.halting.observed[number], model.halting.predicted[number])
            each.append(torch.sigmoid(model.halting(thought.latent[row, time]) + observed.logit() - predicted.logit()).item())
        probabilities += each
        depths.append(next((depth for depth, probability in enumerate(each, start=1) if probability >= 0.2), len(thoughts)))
    assert set(depths) == {1, 2, 3}
    assert measured.act_avg_halting_steps.item() == pytest.approx(statistics.fmean(depths))
    assert measured.act_halt_prob_mean.item() == pytest.approx(statistics.fmean(probabilities))
    assert measured.act_halt_prob_std.item() == pytest.approx(statistics.pstdev(probabilities), rel=1e-4)

    ranks, surprises = [], []
    for signals in memories:
        for row in range(3):
            ends, surprise = recurrence(Signals(*(tensor[row].detach().double() for tensor in signals)), documents[row])
            last = max(time for which, time in places if which == row)
            shares = [values / values.sum() for values in torch.linalg.svdvals(ends[last])]
            ranks += [float(torch.exp(-(share * share.log()).sum())) / signals.key.size(-1) for share in shares]
            surprises += [surprise[time] for which, time in places if which == row]
    assert measured.ltm_memory_usage.item() == pytest.approx(statistics.fmean(ranks), rel=1e-4)
    assert measured.ltm_surprise_rate.item() == pytest.approx(statistics.fmean(one > 1.2 for one in surprises))
    assert 0 < measured.ltm_surprise_rate < 1

    rows, times = zip(*places, strict=True)
    values = torch.stack([gate[rows, times].double() for gate, _ in gates])
    entropy = -(values * values.log() + (1 - values) * (1 - values).log())
    assert measured.gate_mean.item() == pytest.approx(values.mean().item())
    assert measured.gate_entropy.item() == pytest.approx(entropy.mean().item(), rel=1e-4)
    assert loss.loss_gate.item() == pytest.approx(-model.config.gate_entropy * entropy.mean().item(), rel=1e-4)


def recurrence(signals: Signals, documents: Tensor) -> tuple[list[Tensor], list[float]]:
    """A row's memory after each token, and how much of each token's value it missed before; signals without their batch."""
    state, states, surprises = signals.value.new_zeros(len(signals.key), signals.key.size(-1), signals.value.size(-1)), [], []
    for time, document in enumerate(documents.tolist()):
        if time and document != documents[time - 1]:
            state = torch.zeros_like(state)
        key, value = signals.key[:, time], signals.value[:, time]  # [head, key_dim], [head, value_dim]
        surprises.append(float((value - torch.einsum("hkv,hk->hv", state, key)).norm() / value.norm()))
        written = signals.write[:, time, None, None] * key[:, :, None] * value[:, None, :]
        state = signals.log_decay[:, time, None, None].exp() * state + written
        states.append(state)
    return states, surprises


def test_the_loss_in_eval_mode_changes_nothing(small: Build) -> None:
    """Neither buffers nor weights nor the state of the random generator; so it can be called any number of times."""
    model = small()
    tokens, documents = batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    first = model.loss(tokens, next_tokens(tokens, documents), documents, measure=True)
    second = model.loss(tokens, next_tokens(tokens, documents), documents)
    assert first.loss == second.loss
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_loss_in_train_mode_updates_the_calibration(small: Build) -> None:
    model = small().train()
    tokens, documents = batch()
    before = model.state_dict()["halting.predicted"].clone()
    model.loss(tokens, next_tokens(tokens, documents), documents)
    assert not torch.equal(before, model.state_dict()["halting.predicted"])


def test_the_last_recursion_teaches_the_halting_head_nothing(small: Build) -> None:
    """Training sees nothing after it, so "thinking on would not help" is no fact there: two recursions make one lesson."""
    model = small(recursions=2)
    assert model.halting is not None
    tokens, documents = batch()
    targets = next_tokens(tokens, documents)
    counted = targets != NOT_COUNTED
    thoughts, _ = model._think(tokens, *model._surroundings(tokens, model._segments(tokens, documents)))
    first, last = (
        functional.cross_entropy(model.logits(thought.answer)[counted], targets[counted], reduction="none") for thought in thoughts
    )
    is_better = (first <= last + model.config.act_delta).float()
    expected = functional.binary_cross_entropy_with_logits(model.halting(thoughts[0].latent)[counted], is_better)
    assert 0 < is_better.mean() < 1
    torch.testing.assert_close(model.loss(tokens, targets, documents).loss_act, expected.detach())


def test_the_state_dict_holds_weights_and_calibration_only(small: Build) -> None:
    """Capacity is configuration, and a memory's contents belong to a sequence."""
    model = small()
    extra = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    assert extra == {"halting.predicted", "halting.observed"}


def test_the_same_seed_gives_the_same_bits() -> None:
    config = ModelConfig(vocab_size=300, d_model=32, n_layers=1, n_heads=2, d_ff=32, trm_d_ff=32)
    tokens, documents = batch()

    def train() -> list[Tensor]:
        torch.manual_seed(3)
        model = Cognate(config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model.loss(tokens, next_tokens(tokens, documents), documents).loss.backward()
            optimizer.step()
        return list(model.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(train(), train(), strict=True))


@pytest.mark.usefixtures("bf16_products")
def test_bf16_activations_come_close_to_float32(small: Build) -> None:
    """Weights and gradients stay float32; only activations are narrower."""
    model = small(act=False)  # its targets jump where two recursions are equally good
    tokens, documents = batch()
    wide = model.loss(tokens, next_tokens(tokens, documents), documents, measure=True)
    wide.loss.backward()
    wide_gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    model.compute_dtype = torch.bfloat16
    narrow = model.loss(tokens, next_tokens(tokens, documents), documents, measure=True)
    narrow.loss.backward()
    narrow_gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert model(tokens).logits.dtype == narrow.loss.dtype == narrow_gradient.dtype == torch.float32
    assert narrow.loss_ce.item() == pytest.approx(wide.loss_ce.item(), rel=0.02)
    assert narrow.loss_ce != wide.loss_ce
    assert functional.cosine_similarity(wide_gradient, narrow_gradient, dim=0) > 0.98


@pytest.mark.parametrize("time", [12, 300], ids=["one call", "strips"])
def test_nothing_is_multiplied_in_bf16_where_that_is_slower(time: int, small: Build, bf16_products: torch.dtype) -> None:
    """In training, validation and reading on, whatever multiplies."""
    model = small()
    model.compute_dtype = torch.bfloat16
    products: set[tuple[str, torch.dtype]] = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.overloadpacket.__name__
            if name in ("mm", "addmm", "bmm", "baddbmm") or "scaled_dot_product" in name:
                products.update((name, given.dtype) for given in args if isinstance(given, Tensor) and given.ndim > 1)
            return function(*args, **(kwargs or {}))

    tokens = torch.randint(300, (2, time))
    with Record():
        model.train().loss(tokens, tokens).loss.backward()
        model.eval().validation_loss(tokens, tokens)
        model.logits(model.extend(tokens[:, :1], model.extend(tokens).state).answers)
    assert any("scaled_dot_product" in name for name, _ in products)
    assert (torch.bfloat16 in {dtype for _, dtype in products}) is (bf16_products == torch.bfloat16)


def test_only_the_last_recursion_keeps_its_graph_when_asked(small: Build) -> None:
    """bptt="last": the same values, less memory; in eval mode it makes no difference."""
    tokens, documents = batch()
    models = {}
    for bptt in ("full", "last"):
        torch.manual_seed(1)
        models[bptt] = small(bptt=bptt, supervised_fraction=1.0).train()
    losses = {}
    for bptt, model in models.items():
        torch.manual_seed(2)
        losses[bptt] = model.loss(tokens, next_tokens(tokens, documents), documents)
    assert losses["full"].loss == losses["last"].loss
    for loss in losses.values():
        loss.loss.backward()
    assert models["full"].recursion.y0.grad.any()
    assert models["last"].recursion.y0.grad is None
    assert models["last"].recursion.query.weight.grad.any()


@pytest.mark.parametrize("name", ["targets", "documents"])
def test_shapes_that_disagree_are_refused(small: Build, name: str) -> None:
    tokens, documents = batch()
    arguments = {"targets": tokens, "documents": documents, name: tokens[:, 1:]}
    with pytest.raises(ValueError, match=name):
        small().loss(tokens, **arguments)


def test_random_tokens_cannot_be_learned_but_their_repetition_can() -> None:
    """The two sides of "no leak": held-out loss on the random half stays at ln V, the repeated half falls well below it."""
    symbols, half = 16, 4
    config = ModelConfig(
        vocab_size=258, d_model=64, n_layers=2, n_heads=2, d_ff=64, window=8, memory_key_dim=16, memory_value_dim=16, recursions=2,
        micro_steps=1, trm_d_ff=64,
    )  # fmt: skip
    model = Cognate(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.95))

    def draw(rows: int) -> Tensor:
        return torch.randint(symbols, (rows, half)).repeat(1, 2)

    for _ in range(300):
        tokens = draw(32)
        optimizer.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).loss.backward()
        optimizer.step()

    model.eval()
    tokens = draw(256)
    random, repeated = tokens[:, 1:].clone(), tokens[:, 1:].clone()
    random[:, half - 1 :] = NOT_COUNTED
    repeated[:, : half - 1] = NOT_COUNTED
    random_loss, repeated_loss = (torch.div(*model.validation_loss(tokens[:, :-1], targets)).item() for targets in (random, repeated))
    assert random_loss > math.log(symbols) - 0.05
    assert repeated_loss < math.log(symbols) / 2


def test_a_ternary_model_computes_with_rounded_matrices_and_nothing_else(small: Build) -> None:
    """Every projection of every part, the MLP's second matrix included; embedding, gates, norms and halting as they are."""
    tokens, documents = batch()
    model, rounded = small(ternary=True), small()
    rounded.load_state_dict(model.state_dict())
    linears = {name: module for name, module in rounded.named_modules() if isinstance(module, Linear)}
    assert len(linears) == 2 * (4 + 2 + 4) + 4 + 2  # two blocks of attention, MLP and memory; the recursion's attention and MLP
    different = rounded(tokens, documents).logits
    with torch.no_grad():
        for linear in linears.values():
            linear.weight.copy_(ternary(linear.weight))
            assert linear.weight.unique().numel() == 3
    torch.testing.assert_close(model(tokens, documents).logits, rounded(tokens, documents).logits)
    assert not torch.allclose(different, rounded(tokens, documents).logits, atol=0.1)


def test_a_ternary_model_learns() -> None:
    """Straight-through steps add up in the float32 weights until a rounding flips."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=258, d_model=32, n_layers=1, n_heads=2, d_ff=64, trm_d_ff=64, window=16, ternary=True)
    model, tokens = Cognate(config), torch.randint(258, (4, 24))
    optimizer = MuGrokfast(model.named_parameters(), muon_lr=2e-2, embedding_lr=2e-2, adamw_lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(tokens, tokens.roll(-1, 1))
        loss.loss.backward()
        optimizer.step()
        losses.append(loss.ce_last.item())
    assert losses[-1] < losses[0] - 2


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch of itself, while it traces
def test_static_shapes_trace_in_one_graph_and_change_nothing(small: Build) -> None:
    """What a GPU compiles, traced here without its code generation: no break in the graph, and uncounted tokens weigh nothing."""
    model = small(n_layers=1)
    tokens, documents = batch()
    targets = next_tokens(tokens, documents)
    assert (targets == NOT_COUNTED).any()
    results = []
    for is_compiled in (False, True):
        if is_compiled:
            model.compile(backend="aot_eager")
        model.zero_grad()
        loss = model.loss(tokens, targets, documents, measure=True)
        loss.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert loss.measurements is not None
        results.append(({**vars(loss), "measurements": None}, vars(loss.measurements), gradients))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_flex_attention_is_traced_once_for_all_batches(small: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mask is a function of each batch's documents: one made anew must not be compiled anew. The gradient is plain attention's."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)  # see test_attention.py
    model = small(n_layers=1, recursions=1, micro_steps=1, ltm=False)
    model.compile(flex=True, backend="aot_eager")
    compiled = model._compiled
    for seed in range(2):
        torch.manual_seed(seed)
        tokens, documents = torch.randint(300, (3, 22)), (torch.rand(3, 22) < 0.2).cumsum(1)
        targets, results = next_tokens(tokens, documents), []
        for model._compiled in (None, compiled):
            model.zero_grad()
            with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
                loss = model.loss(tokens, targets, documents)
            loss.loss.backward()
            results.append((loss.loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_a_loss_never_waits_for_its_device(small: Build) -> None:
    """The meta device has no values: whoever asks for one, or for a shape that depends on one, is refused. A measured step does."""
    model, tokens = small(n_layers=1).train().to("meta"), torch.zeros(3, 22, dtype=torch.long, device="meta")
    model.loss(tokens, tokens, tokens).loss.backward()
    assert model.embedding.weight.grad is not None
    block_mask(tokens, 7)
    targets = torch.tensor([[NOT_COUNTED] * 20 + [7, 8]] * 3)  # on the CPU
    model.sequence_nats(tokens, targets).sum().backward()
    with pytest.raises(RuntimeError, match="meta"):
        model.loss(tokens, tokens, tokens, measure=True)


@pytest.mark.parametrize("n_counted", [0, 1, 2, 9, 10, 32])
def test_where_shapes_are_static_the_same_tokens_are_scored(small: Build, n_counted: int) -> None:
    """On a GPU nobody knows how many are counted; the loss is the CPU's all the same, and its share that of the counted ones."""
    model = small(n_layers=1, supervised_fraction=0.3).train()
    tokens = torch.randint(300, (2, 16))
    for seed in range(10):
        torch.manual_seed(seed)
        targets = torch.full((32,), NOT_COUNTED)
        targets[torch.randperm(32)[:n_counted]] = torch.randint(300, (n_counted,))
        losses = []
        static = copy.deepcopy(model)
        static._compiled = static._compute
        for each in (model, static):
            torch.manual_seed(seed)
            with torch.no_grad():
                losses.append(each.loss(tokens, targets.view(2, 16), measure=True))
        one, other = losses
        torch.testing.assert_close([other.loss, other.loss_ce, other.loss_act], [one.loss, one.loss_ce, one.loss_act])
        assert (one.measurements is None) == (n_counted == 0)
        if one.measurements is not None and other.measurements is not None:
            for name, value in vars(one.measurements).items():
                torch.testing.assert_close(vars(other.measurements)[name], value, msg=name)


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("fraction", [0.25, 0.3, 1.0, None])
def test_early_recursions_are_scored_on_their_share_of_the_counted_tokens(fraction: float | None, is_static: bool) -> None:
    counted = torch.rand(4, 50) < 0.3
    places = places_of(counted, fraction, is_static=is_static)
    drawn = places.chosen[places.chosen_weights > 0]
    assert counted.flatten()[drawn].all()
    assert len(drawn) == len(drawn.unique()) == math.ceil((fraction or 1) * counted.sum().item())
    torch.testing.assert_close(places.chosen_weights.sum(), torch.tensor(1.0))
    among = torch.arange(counted.numel()) if places.scored is None else places.scored
    assert torch.equal(among[places.choice], places.chosen)


def test_a_copy_of_a_compiled_model_trains_itself(small: Build) -> None:
    """torch's AveragedModel copies so."""
    model = small(n_layers=1)
    model.compile(backend="eager")
    tokens = torch.randint(300, (1, 8))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.loss(tokens, tokens).loss.backward()
        assert copied.embedding.weight.grad is not None
    assert model.embedding.weight.grad is None


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (5,)])
def test_tokens_without_any_are_refused(small: Build, shape: tuple[int, ...]) -> None:
    model, tokens = small(n_layers=1), torch.zeros(shape, dtype=torch.long)
    for call in (model, model.extend, lambda some: model.loss(some, some)):
        with pytest.raises(ValueError, match="at least one row and one token"):
            call(tokens)
