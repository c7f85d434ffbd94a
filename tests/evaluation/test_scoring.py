"""scoring.py, tasks.py and suite.py: the likelihoods are the model's own, and neither batches nor company change a result."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cognate.config import DatasetName, RunConfig, resolve
from cognate.data.cache import Cache
from cognate.data.corpus import load_corpus
from cognate.data.files import DataMissing, DataUnreadable
from cognate.data.rows import plan
from cognate.data.sources import SOURCES
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation import scoring, suite
from cognate.evaluation.baseline import fresh, untrained
from cognate.evaluation.items import Items, load_items, sample
from cognate.evaluation.overlap import check, overlaps, texts
from cognate.evaluation.referee import REFEREED, Answering, RefereeMissing, referee
from cognate.evaluation.scoring import Batching, Likelihood, continue_texts, likelihoods, read_on
from cognate.evaluation.suite import sample_accuracies, sample_items
from cognate.evaluation.tasks import TASKS, Figure, Model, Outcome, measure
from cognate.metrics import KEYS
from cognate.model import Cognate, Generation, State

sys.path.append(str(Path(__file__).parents[1] / "data"))
from data_folders import row, small_config, write_folder, write_split

CONFIG = resolve(
    "quickstart",
    {
        "model": {"vocab_size": 400, "act_threshold": 0.01, "d_model": 32, "d_ff": 64, "trm_d_ff": 64, "window": 16},
        "data": {"source": "real"},
    },
)
PROMPTS = [
    "Question: Which is a liquid?\nA. iron\nB. water\nAnswer:",
    "a",
    "Question: 2 + 3?\nAnswer:",
    "One two three four five six seven eight.",
]
CANDIDATES = [[" A. iron", " B. water"], ["b", " yes, it is", "c"], [" 5"], [" nine", " ten and eleven"]]
SMALLEST = Batching(rows=1, tokens=1)
ONE_OF_EACH_KIND: tuple[DatasetName, ...] = ("svamp", "arc_easy", "strategyqa", "drop", "wikitext")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), n_train=60)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_corpus(CONFIG, folder, None).tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    """With weights large enough that its answers differ from prompt to prompt."""
    net = fresh(CONFIG)
    generator = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return Model(net, tokenizer)


# --- likelihoods ------------------------------------------------------------------------------------------


def one_by_one(model: Model, prompt: list[int], tail: list[int]) -> tuple[float, int]:
    """By the plain forward pass over prompt and candidate together: no state, no batch."""
    with torch.no_grad():
        logits = model.net(torch.tensor([[*prompt, *tail]])).logits[0]
    scores = torch.log_softmax(logits.double(), dim=-1)[len(prompt) - 1 : -1]
    wanted = torch.tensor(tail)
    return float(scores.gather(1, wanted[:, None]).sum()), int((scores.argmax(-1) == wanted).sum())


def test_likelihoods_are_those_of_the_forward_pass(model: Model) -> None:
    found = likelihoods(model.net, model.tokenizer, PROMPTS, CANDIDATES)
    for prompt, tails, scored in zip(PROMPTS, CANDIDATES, found, strict=True):
        for tail, each in zip(tails, scored, strict=True):
            nats, hits = one_by_one(model, model.tokenizer.encode(prompt), model.tokenizer.encode(tail))
            assert each.nats == pytest.approx(nats, abs=1e-3)
            assert (each.hits, each.tokens) == (hits, len(model.tokenizer.encode(tail)))


def test_reading_on_scores_all_but_the_first_token(model: Model) -> None:
    for text, each in zip(PROMPTS, read_on(model.net, model.tokenizer, PROMPTS), strict=True):
        first, *rest = model.tokenizer.encode(text)
        nats, hits = one_by_one(model, [first], [*rest, model.tokenizer.end_id])
        assert (each.nats, each.hits, each.tokens) == (pytest.approx(nats, abs=1e-3), hits, len(rest) + 1)


@pytest.mark.parametrize("batching", [SMALLEST, Batching(rows=2), Batching(rows=100, tokens=70)], ids=["one", "two", "few tokens"])
def test_the_batch_size_changes_nothing(model: Model, folder: Path, batching: Batching) -> None:
    """Every figure, bit for bit where it is a count: of one dataset of each kind, but for code, whose texts are made like others."""
    other = replace(model, batching=batching)
    for name in ONE_OF_EACH_KIND:
        chosen = load_items(folder, name, "final", 3)
        one, two = measure(model, chosen), measure(other, chosen)
        assert one.right == two.right, name
        for key, figure in one.figures.items():
            assert two.figures[key].value == pytest.approx(figure.value, rel=1e-4), (name, key)


def test_a_word_comes_before_each_batch(model: Model) -> None:
    """A whole dataset is hours of a CPU; who is silent for that long counts as hanging."""
    words: list[None] = []
    batching = Batching(rows=1, before_each=lambda: words.append(None))
    likelihoods(model.net, model.tokenizer, PROMPTS, CANDIDATES, batching)
    read_on(model.net, model.tokenizer, PROMPTS, batching)
    continue_texts(model.net, model.tokenizer, PROMPTS, 1, batching)
    assert len(words) == 3 * len(PROMPTS)


def test_the_order_and_the_company_of_prompts_change_nothing(model: Model) -> None:
    written = continue_texts(model.net, model.tokenizer, PROMPTS, 12)
    assert len(set(written)) == len(PROMPTS)  # else any order would do
    assert continue_texts(model.net, model.tokenizer, PROMPTS[::-1], 12) == written[::-1]
    assert [continue_texts(model.net, model.tokenizer, [prompt], 12)[0] for prompt in PROMPTS] == written
    there, back = (
        likelihoods(model.net, model.tokenizer, PROMPTS[::step], CANDIDATES[::step], SMALLEST if step < 0 else Batching())
        for step in (1, -1)
    )
    for one, two in zip(there, back[::-1], strict=True):
        assert [each.nats for each in one] == pytest.approx([each.nats for each in two], abs=1e-4)


# --- how each kind is measured ----------------------------------------------------------------------------


class Scripted:
    """A model that writes and weighs as it is told."""

    calculator, votes = False, 0

    def __init__(self, written: list[str], nats: list[list[float]] | None = None) -> None:
        self.written, self.nats, self.asked = written, nats, list[str]()

    def write(self, prompts: list[str], _: int) -> list[str]:
        return self.written

    def weigh(self, prompts: list[str], candidates: list[tuple[str, ...]]) -> list[list[Likelihood]]:
        self.asked = prompts
        assert self.nats is not None
        return [[Likelihood(nats, 1, 0) for nats in each] for each in self.nats]


def scripted(name: DatasetName, folder: Path, written: list[str], nats: list[list[float]] | None = None) -> Outcome:
    items = [item for which in ("final", "validation") for item in load_items(folder, name, which).items][: len(written)]
    return TASKS[name].measure(Scripted(written, nats), items)  # type: ignore[arg-type]


def test_numbers_are_right_when_the_number_is(folder: Path) -> None:
    outcome = scripted("gsm8k", folder, ["so\n#### 1", "it is 2", "#### 3 figs", "#### 5"])
    assert outcome.right == (1, 0, 1, 0)
    assert {key: figure.value for key, figure in outcome.figures.items()} == {"exact_match": 0.5, "last_number": 0.75, "has_answer": 0.75}


def test_programs_are_right_when_their_tests_pass(folder: Path) -> None:
    outcome = scripted("mbpp", folder, ["\ndef f():\n    return 0", "\ndef f():\n    return 0", "\nimport sys\nsys.exit(0)", "\ndef f("])
    assert outcome.right == (1, 0, 0, 0)
    assert outcome.remarks[1] == "verdicts: ended 1, error 1, passed 1, wrong 1"
    assert "hook" in outcome.remarks[0]


def test_choices_are_by_nats_and_by_nats_per_byte(tmp_path: Path) -> None:
    choices = {"text": ["a rather long answer", "short"], "label": ["1", "2"]}
    rows = [row("arc_easy", number) | {"choices": choices, "answerKey": "1"} for number in range(2)]
    for split in SOURCES["arc_easy"].splits:
        write_split(tmp_path, "arc_easy", split, rows)
    outcome = scripted("arc_easy", tmp_path, ["", ""], [[-10.0, -6.0], [-30.0, -6.0]])
    # "A. a rather long answer" has 23 bytes, "B. short" 8: -0.43 beats -0.75, and -1.3 does not.
    assert outcome.right == (1, 0)
    assert (outcome.figures["acc"].value, outcome.figures["acc_norm"].value, outcome.chance) == (0, 0.5, 0.5)


def test_reasoned_choices_are_asked_behind_the_models_own_facts(folder: Path) -> None:
    items = load_items(folder, "strategyqa", "final", 2).items
    asked = Scripted([" It rains.\n#### no", " It snows"], [[-1.0, -2.0], [-2.0, -1.0]])
    outcome = TASKS["strategyqa"].measure(asked, items)  # type: ignore[arg-type]
    assert asked.asked == [f"{items[0].prompt} It rains.\n####", f"{items[1].prompt} It snows\n####"]
    assert outcome.right == (1, 0)
    assert outcome.remarks == ("always answering 'yes' gives 1.000",)


def test_perplexity_of_an_even_model_is_the_size_of_its_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    net = fresh(CONFIG)
    net.embedding.weight.data.zero_()
    outcome = measure(Model(net, tokenizer), load_items(folder, "wikitext", "final"))
    assert outcome.figures["token_perplexity"].value == pytest.approx(CONFIG.model.vocab_size, rel=1e-4)
    assert outcome.figures["word_perplexity"].value > outcome.figures["token_perplexity"].value  # words here are several tokens


def test_every_figure_of_lines_has_an_interval(model: Model, folder: Path) -> None:
    for name, figure in measure(model, load_items(folder, "wikitext", "final")).figures.items():
        assert figure.low is not None, name
        assert figure.high is not None, name
        assert figure.low <= figure.value <= figure.high, name
        assert figure.low < figure.high, name


def test_a_target_is_met_from_its_own_side() -> None:
    assert suite.judge("exact_match", Figure(0.30, 1000), (0.30, 0.40))
    assert suite.judge("exact_match", Figure(0.29, 1000), (0.30, 0.40)) is False
    assert suite.judge("token_perplexity", Figure(9.9, 1000), (7.0, 10.0))
    assert suite.judge("token_perplexity", Figure(10.1, 1000), (7.0, 10.0)) is False


@pytest.mark.parametrize(
    ("low", "high", "met"), [(0.31, 0.40, True), (0.30, 0.40, True), (0.22, 0.41, None), (0.29, 0.30, None), (0.20, 0.29, False)]
)
def test_an_interval_on_both_sides_of_a_target_decides_nothing(low: float, high: float, met: bool | None) -> None:
    """32 or more of 100 right is what one model in fourteen has that guesses among four."""
    assert suite.judge("acc_norm", Figure((low + high) / 2, 100, low, high), (0.30, 0.40)) is met
    assert suite.judge("token_perplexity", Figure(1 / 0.32, 100, 1 / high, 1 / low), (0.0, 1 / 0.30)) is met


# --- the whole --------------------------------------------------------------------------------------------


def test_the_report_has_a_result_or_a_reason_for_every_dataset(tmp_path: Path, model: Model) -> None:
    write_folder(tmp_path, ("boolq", "drop", "wikitext"))
    (tmp_path / SOURCES["drop"].folder / "validation.parquet").unlink()
    report = suite.evaluate(
        model, tmp_path, untrained=untrained(CONFIG, model.tokenizer, torch.device("cpu"), Cache(None, print), Batching())
    )
    assert [result.dataset for result in report.results] == ["boolq", "wikitext"]
    assert set(report.absent) == set(SOURCES) - {"boolq", "wikitext"}
    assert report.absent["drop"] == "drop has no validation.parquet"
    made = json.loads(json.dumps(suite.to_json(report)))
    found = made["datasets"]["boolq"]
    assert set(found["figures"]["acc_norm"]) == {"value", "n", "low", "high"}
    assert set(found["untrained"]) == {"acc_norm", "acc"}
    assert found["chance"] == 0.5
    assert made["datasets"]["wikitext"]["met"] == {"token_perplexity": False}


def test_a_model_is_not_measured_on_another_copy_than_it_was_trained_with(tmp_path: Path, model: Model) -> None:
    """StrategyQA is divided otherwise on the hub than in other folders; what came since and was not known has no such trouble."""
    fetched, own = write_folder(tmp_path / "datasets", ("strategyqa",)), tmp_path / "own"
    known = load_corpus(CONFIG, None, tmp_path).digests
    write_folder(own, ("strategyqa", "boolq"))
    write_split(own, "strategyqa", "validation", [row("strategyqa", number) for number in range(4)])
    report = suite.evaluate(model, own, ["strategyqa", "boolq"], cache_dir=tmp_path, known=known)
    assert report.results[0].items == load_items(fetched, "strategyqa", "final").items
    shutil.rmtree(fetched)
    report = suite.evaluate(model, own, ["strategyqa", "boolq"], cache_dir=tmp_path, known=known)
    assert [result.dataset for result in report.results] == ["boolq"]
    assert "another copy than training had" in report.absent["strategyqa"]


def test_the_untrained_model_is_the_one_the_run_began_with_and_measured_once(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(CONFIG.seed)
    begun = Cognate(CONFIG.model).eval()
    before = torch.get_rng_state()
    weights = fresh(CONFIG).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in begun.state_dict().items())
    chosen = load_items(folder, "boolq", "final", 3)
    direct = measure(Model(begun, tokenizer), chosen).figures

    def figures(config: RunConfig, items: Items) -> object:
        return untrained(config, tokenizer, torch.device("cpu"), Cache(tmp_path, print), Batching())(items).figures

    assert figures(CONFIG, chosen) == figures(CONFIG, chosen) == direct
    assert len(list(tmp_path.iterdir())) == 1
    figures(CONFIG, load_items(folder, "boolq", "final", 2))
    figures(CONFIG.model_copy(update={"seed": 8}), chosen)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_epoch_gets_the_accuracies_of_what_is_there(folder: Path, model: Model) -> None:
    samples = sample_items(folder, count=2)
    model.net.train()
    before = torch.get_rng_state()
    values = sample_accuracies(model.net, model.tokenizer, samples)
    assert model.net.training
    assert torch.equal(before, torch.get_rng_state())
    model.net.eval()
    assert list(values) == [f"accuracy_{sample.name}" for sample in samples]
    assert set(values) <= set(KEYS)
    assert len(values) >= 11  # of the generated folder, some keep none of their few rows aside
    assert all(0 <= value <= 1 and not math.isnan(value) for value in values.values())
    assert sample_accuracies(model.net, model.tokenizer, sample_items(None)) == {}
    assert [each.name for each in sample_items(folder, ["piqa"], 2)] == ["piqa"]


# --- items ------------------------------------------------------------------------------------------------


def test_validation_items_are_the_rows_that_training_keeps_aside(folder: Path) -> None:
    """Row for row, in the very words."""
    rows = plan(small_config({"source": "real"}).data, folder).read()
    for name in SOURCES:
        expected = [(example.prompt, example.answer) for example in rows.validation[name]]
        assert [(item.prompt, item.answer) for item in load_items(folder, name, "validation").items] == expected


def test_no_item_is_trained_on(folder: Path) -> None:
    rows = plan(small_config({"source": "real"}).data, folder).read()
    trained = {example.key for examples in rows.training.values() for example in examples}
    for name in SOURCES:
        for which in ("validation", "final"):
            assert trained.isdisjoint(item.key for item in load_items(folder, name, which).items), (name, which)


def test_the_right_candidate_is_the_answer_that_is_trained(folder: Path) -> None:
    for name in ("arc_easy", "arc_challenge", "hellaswag", "piqa", "boolq"):
        for item in load_items(folder, name, "validation").items:
            assert item.candidates[item.correct] == item.answer
            assert len(set(item.candidates)) == len(item.candidates) > 1


def test_a_sample_is_fixed_and_begins_alike(folder: Path) -> None:
    items = load_items(folder, "boolq", "validation").items
    assert sample(items, "boolq", 3) == sample(items[::-1], "boolq", 4)[:3]
    assert load_items(folder, "boolq", "validation", 2).rows == "2 of the 4 validation rows"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("gsm8k", {"answer": "There are many."}, "no number"),
        ("mbpp", {"test_list": []}, "no tests"),
        ("mbpp", {"test_list": ["f() == 1"]}, "not an assert"),
        ("strategyqa", {"answer": None}, "answer is null"),
    ],
)
def test_a_row_by_which_nothing_can_be_measured_is_named(tmp_path: Path, name: DatasetName, change: dict[str, object], reason: str) -> None:
    """Else it would count as right for every model, or as wrong."""
    write_folder(tmp_path, (name,))
    split = SOURCES[name].evaluation[-1]
    write_split(tmp_path, name, split, [row(name, 0, split), row(name, 1, split) | change])
    with pytest.raises(DataUnreadable, match=f"row 1 of .*{reason}"):
        load_items(tmp_path, name, "final")


@pytest.mark.slow
def test_no_real_item_is_trained_on(data_dir: Path) -> None:
    rows = plan(resolve("reasoning").data, data_dir).read()
    trained = {example.key for examples in rows.training.values() for example in examples}
    counts = {}
    for name in SOURCES:
        for which in ("validation", "final"):
            items = load_items(data_dir, name, which).items
            assert trained.isdisjoint(item.key for item in items), (name, which)
            counts[name] = len(items)
    assert counts | {"gsm8k": 1319, "svamp": 300, "mbpp": 500, "codexglue": 1000, "hellaswag": 10_042, "drop": 1000} == counts


# --- overlap ----------------------------------------------------------------------------------------------

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not(folder: Path) -> None:
    item = load_items(folder, "boolq", "validation").items[0]
    items = [replace(item, prompt=text, answer="") for text in (LONG, f"x {LONG[:-9]} y", "too short")]
    assert LONG[:-9].split()[-1] == "thirteen"
    found = overlaps([f"before. {LONG.upper()[:-9]}, after"], {"boolq": items})["boolq"]
    assert (found.touched, found.share, found.mostly, found.short, found.short_touched) == ({0, 1}, 2 / 3, 1, 1, 0)
    twelve = " ".join(LONG.split()[:12])
    assert overlaps([twelve, f"{twelve} x", " ".join(LONG.split()[1:13])], {"boolq": items})["boolq"].touched == frozenset()


@pytest.mark.parametrize(
    ("text", "is_touched"), [("is it (too) short?", True), ("is it too", False), ("x is it too. Short", True), ("", False)]
)
def test_fewer_than_thirteen_words_are_looked_for_as_a_whole(folder: Path, text: str, is_touched: bool) -> None:
    item = load_items(folder, "boolq", "validation").items[0]
    items = [replace(item, prompt=text, answer="") for text in ("Is it too short", "...", LONG)]
    found = overlaps([text, "short"], {"boolq": items})["boolq"]
    assert (found.touched, found.mostly, found.short, found.short_touched) == ({0} if is_touched else set(), is_touched, 2, is_touched)


def test_every_final_item_is_looked_for_also_where_a_sample_is_scored(tmp_path: Path, model: Model) -> None:
    """Which needs no model; the score of the others is that of the scored ones."""
    write_folder(tmp_path, ("svamp", "boolq"))
    leaks = [row("boolq", number) | {"passage": f"{LONG} {number}."} for number in range(4)]
    write_split(tmp_path, "boolq", "validation", leaks)
    write_split(tmp_path, "svamp", "train", [row("svamp", 1) | {"question_concat": f"{LONG} {number}"} for number in range(2)])
    corpus = load_corpus(CONFIG, tmp_path, None)
    report = suite.evaluate(model, tmp_path, ["boolq", "svamp"], 2)
    found = check(report, CONFIG, tmp_path, None, corpus.tokenizer, corpus.fingerprint, corpus.digests)
    assert [(found[name]["items"], found[name]["touched"]) for name in ("boolq", "svamp")] == [(4, 4), (4, 0)]
    assert [result.figures[result.figure].n for result in report.results] == [2, 2]
    assert (found["boolq"]["score_without"], found["svamp"]["score_without"]) == (None, report.results[1].figures["exact_match"].value)


def test_overlap_is_looked_for_in_the_tokens_that_are_trained(folder: Path, model: Model) -> None:
    """A row that got into the training text would show, whatever let it in."""
    corpus = load_corpus(CONFIG, folder, None)
    assert " ".join(texts(corpus.training, corpus.tokenizer)).count("did boolq train three?") == 1
    report = suite.evaluate(model, folder, ["boolq", "piqa"])
    assert check(report, CONFIG, folder, None, model.tokenizer, corpus.fingerprint, corpus.digests)["boolq"]["items"] == 4
    with pytest.raises(DataMissing, match="the data have changed"):
        check(report, CONFIG, folder, None, model.tokenizer, "another", corpus.digests)


def test_overlap_is_with_the_text_that_was_trained_on_whatever_came_since(tmp_path: Path, model: Model) -> None:
    """A folder that comes first now holds other rows: none of them was read, and leaks of those that were must still show."""
    own, fetched = tmp_path / "own", write_folder(tmp_path / "datasets", ("svamp",))
    write_split(fetched, "svamp", "train", [row("svamp", number) | {"question_concat": f"{LONG} {number}?"} for number in range(30)])
    began = load_corpus(CONFIG, None, tmp_path)
    write_folder(own, ("svamp", "boolq"))
    write_split(own, "boolq", "validation", [row("boolq", number) | {"passage": LONG} for number in range(4)])
    report = suite.evaluate(model, own, ["boolq"], cache_dir=tmp_path)
    assert check(report, CONFIG, own, tmp_path, began.tokenizer, began.fingerprint, began.digests)["boolq"]["touched"] == 4
    (fetched / "svamp" / "train.parquet").unlink()
    with pytest.raises(DataMissing, match="the data have changed"):
        check(report, CONFIG, own, tmp_path, began.tokenizer, began.fingerprint, began.digests)


# --- the referee ------------------------------------------------------------------------------------------


def test_the_harness_is_answered_as_we_are(model: Model) -> None:
    """By two implementations: ours in batches, from a state; the harness is answered by plain passes."""
    answering = Answering(model)
    requests = [(prompt, tail) for prompt, tails in zip(PROMPTS, CANDIDATES, strict=True) for tail in tails][::-1]
    ours = likelihoods(model.net, model.tokenizer, PROMPTS, CANDIDATES)
    assert answering.loglikelihood(requests) == [
        (pytest.approx(each.nats, abs=1e-4), each.is_greedy) for each in [each for some in ours for each in some][::-1]
    ]
    assert answering.loglikelihood_rolling([(text,) for text in PROMPTS]) == [
        pytest.approx(each.nats, abs=1e-3) for each in read_on(model.net, model.tokenizer, PROMPTS)
    ]
    (whole,) = continue_texts(model.net, model.tokenizer, PROMPTS[:1], 20)
    middle = whole[3:5]
    cut = answering.generate_until([(PROMPTS[0], {"until": [middle, "never said"], "max_gen_toks": 20})])
    assert cut == [whole[: whole.find(middle)]]


def test_what_the_harness_hears_does_not_come_from_our_scoring(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error there must show as a disagreement, so nothing it says is passed on; nor what only the usual generation says."""
    answering, (asked, settings) = Answering(model), (PROMPTS[0], {"until": [], "max_gen_toks": 12})
    weighed = answering.loglikelihood([(PROMPTS[1], "c")])
    written = answering.generate_until([(asked, settings)])
    monkeypatch.setattr(scoring, "_score", lambda *_: pytest.fail("our scoring was asked"))
    wrong = Generation([[7] * 12], [[1] * 12], State.empty(CONFIG.model, 1, torch.float32, torch.device("cpu")))
    monkeypatch.setattr(Cognate, "generate", lambda *_, **__: wrong)
    assert answering.loglikelihood([(PROMPTS[1], "c")]) == weighed
    assert answering.generate_until([(asked, settings)]) == written


def test_without_the_harness_there_is_a_sentence(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RefereeMissing, match="extra 'eval'"):
        referee(model, [])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_referee_agrees(model: Model, folder: Path) -> None:
    pytest.importorskip("lm_eval")
    report = suite.evaluate(model, folder, REFEREED)
    theirs = referee(model, [Items(each.dataset, each.items, each.rows) for each in report.results])
    assert set(theirs) == {each.dataset for each in report.results}
    for each in report.results:
        assert theirs[each.dataset] == pytest.approx({key: each.figures[key].value for key in theirs[each.dataset]})
