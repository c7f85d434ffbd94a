"""The hand-off archive: what is in it, what is refused, and that it can be loaded where nothing but the archive is known."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cognate.data.tokenizer import Tokenizer
from cognate.jobdir import JobContext, JobFailed
from cognate.metrics import KEYS
from cognate.report import handoff, verify
from cognate.report.diversity import measure_runs
from cognate.report.handoff import NotFit, build, perform
from cognate.report.history import NothingSaved
from cognate.report.verify import FOLDER, BadArchive
from cognate.rundir import CorruptCheckpoint, Places, RunDir, read_json, write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process takes seconds; those tests start one that are about it."""
    monkeypatch.setattr(handoff, "verify_in_new_process", verify.verify)


@pytest.fixture
def promised_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Phase 2 took models of these few thousand parameters."""
    monkeypatch.setattr(handoff, "PARAMETERS", (1_000, 100_000))
    monkeypatch.setattr(verify, "PARAMETERS", (1_000, 100_000))


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder / FOLDER


def test_the_archive_holds_what_was_promised(trio: list[RunDir], tmp_path: Path) -> None:
    manifest = build(trio, tmp_path / "a.tar", allow_any_size=True)
    folder = unpacked(tmp_path / "a.tar", tmp_path)
    for name in ("reasoning", "memory", "speed"):
        for ending in ("best.safetensors", "epoch_2.safetensors", "config.json", "tokenizer.json", "metrics.csv"):
            assert (folder / f"{name}_{ending}").is_file()
        assert manifest["absent"][name] == {f"{name}_evaluation.json": "no evaluation of these weights was given"}
    assert manifest["absent"]["diversity"] == {"diversity.json": "no diversity report was given"}
    assert read_json(folder / "manifest.json") == manifest
    header, *lines = (folder / "speed_metrics.csv").read_text().splitlines()
    assert header.split(",")[4:] == list(KEYS)
    assert len(lines) == trio[2].complete_checkpoints()[-1][0] + 1
    assert [model["seed"] for model in manifest["models"]] == [42, 1337, 2023]
    assert all(model["training_is_finished"] for model in manifest["models"])


def test_the_best_checkpoint_is_taken_and_its_absence_told(trio: list[RunDir], tmp_path: Path) -> None:
    reasoning, memory, speed = trio
    first = reasoning.complete_checkpoints()[0][0]
    write_json(reasoning.checkpoints / "best.json", {"step": first, "val_loss": 1.25})
    write_json(memory.checkpoints / "best.json", {"step": 1, "val_loss": 1.25})
    (speed.checkpoints / "best.json").unlink()
    of_reasoning, of_memory, of_speed = (model["best"] for model in build(trio, tmp_path / "a.tar", allow_any_size=True)["models"])
    assert of_reasoning == {"step": first, "val_loss": 1.25, "chosen_because": "the smallest held-out loss"}
    assert of_memory["step"] == memory.complete_checkpoints()[-1][0]
    assert of_memory["chosen_because"] == "the newest, for the best one, of step 1, is not there any more"
    assert of_speed["chosen_because"] == "the newest, for no checkpoint has a held-out loss"
    weights = unpacked(tmp_path / "a.tar", tmp_path) / "reasoning_best.safetensors"
    assert weights.read_bytes() == (reasoning.checkpoint(first) / "model.safetensors").read_bytes()


def test_small_models_are_refused_by_name_unless_that_is_asked_for(trio: list[RunDir], tmp_path: Path) -> None:
    with pytest.raises(NotFit, match=r"memory \(run_memory\) has [\d,]+ parameters, not 22,500,000 to 27,500,000"):
        build(trio, tmp_path / "a.tar")
    assert not list(tmp_path.glob("*a.tar*"))
    manifest = build(trio, tmp_path / "a.tar", allow_any_size=True)
    assert (manifest["fit_for_phase_2"], len(manifest["not_fit_because"])) == (False, 3)
    assert "Not fit for Phase 2" in (unpacked(tmp_path / "a.tar", tmp_path) / "README.md").read_text()


@pytest.mark.usefixtures("promised_sizes")
def test_three_specialists_of_the_promised_size_are_fit(trio: list[RunDir], tmp_path: Path) -> None:
    manifest = build(trio, tmp_path / "a.tar")
    assert (manifest["fit_for_phase_2"], manifest["not_fit_because"]) == (True, [])
    assert "Not fit" not in (unpacked(tmp_path / "a.tar", tmp_path) / "README.md").read_text()
    with pytest.raises(NotFit, match=r"the presets are reasoning, reasoning, speed"):
        build([trio[0], trio[0], trio[2]], tmp_path / "b.tar")
    with pytest.raises(NotFit, match="three models, not 2"):
        build(trio[:2], tmp_path / "b.tar", allow_any_size=True)


def test_equal_inputs_give_equal_bytes(trio: list[RunDir], tmp_path: Path) -> None:
    """Whatever the order asked for, and wherever it is written."""
    (tmp_path / "elsewhere").mkdir()
    build(trio, tmp_path / "a.tar", allow_any_size=True)
    build(trio[::-1], tmp_path / "elsewhere" / "b.tar", allow_any_size=True)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "elsewhere" / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as files:  # nor does the time of day, or the owner, get in
        assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in files} == {(0, 0, 0, "", 0o644)}


def test_a_preset_that_comes_twice_is_numbered(trio: list[RunDir], tmp_path: Path) -> None:
    manifest = build([trio[0], trio[0], trio[2]], tmp_path / "a.tar", allow_any_size=True)
    assert [model["name"] for model in manifest["models"]] == ["reasoning_1", "reasoning_2", "speed"]


def test_a_loss_that_is_no_number_is_told_by_its_name(trio: list[RunDir], tmp_path: Path) -> None:
    """JSON has no NaN, and the manifest's own digest must be that of what is read back."""
    last = trio[0].complete_checkpoints()[-1][0]
    journal = trio[0].attempt(1).journal
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "metrics" and line["step"] == last:
            line["values"]["val_loss"] = "NaN"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = build(trio, tmp_path / "a.tar", allow_any_size=True)
    assert manifest["models"][0]["last_epoch_end"]["val_loss"] == "NaN"


def test_only_results_of_these_weights_are_enclosed(trio: list[RunDir], tmp_path: Path) -> None:
    first = build(trio, tmp_path / "a.tar", allow_any_size=True)
    sha256 = {name: file["sha256"] for name, file in first["files"].items()}
    ours = {"checkpoint": {"model_sha256": sha256["speed_best.safetensors"]}, "datasets": {}}
    theirs = {"checkpoint": {"model_sha256": "0" * 64}, "datasets": {}}
    diversity = measure_runs(trio, Places(None, None), torch.device("cpu"))
    manifest = build(trio, tmp_path / "b.tar", evaluations=[ours, theirs], diversity=diversity, allow_any_size=True)
    assert "diversity" not in manifest["absent"]
    assert set(manifest["absent"]) == {"reasoning", "memory"}
    folder = unpacked(tmp_path / "b.tar", tmp_path)
    assert read_json(folder / "speed_evaluation.json") == ours
    assert read_json(folder / "diversity.json") == json.loads(json.dumps(diversity))
    diversity["members"][0]["model_sha256"] = "0" * 64
    manifest = build(trio, tmp_path / "c.tar", diversity=diversity, allow_any_size=True)
    assert manifest["absent"]["diversity"] == {"diversity.json": "the diversity report that was given is of other weights"}


def test_the_most_thorough_evaluation_is_enclosed(trio: list[RunDir], tmp_path: Path) -> None:
    """A glance at four items does not take the place of all of them; of two alike the newer one counts."""
    sha256 = build(trio, tmp_path / "a.tar", allow_any_size=True)["files"]["speed_best.safetensors"]["sha256"]

    def evaluation(name: str, items: int, dataset: str = "gsm8k", n: int | None = None) -> dict[str, Any]:
        datasets = {dataset: {"figure": "any", "figures": {"any": {"value": 0.5, "n": n or items}}, "item_count": items}}
        return {"checkpoint": {"model_sha256": sha256, "name": name}, "datasets": datasets}

    given = [evaluation("all, once", 1319), evaluation("all, again", 1319), evaluation("a glance", 4)]
    given.append(evaluation("many tokens of few lines", 300, "wikitext", 240_000))
    build(trio, tmp_path / "b.tar", evaluations=given, allow_any_size=True)
    enclosed = read_json(unpacked(tmp_path / "b.tar", tmp_path) / "speed_evaluation.json")
    assert enclosed["checkpoint"]["name"] == "all, again"


# --- loading it elsewhere ---------------------------------------------------------------------------------


def test_it_is_verified_from_another_directory_by_a_new_process(trio: list[RunDir], tmp_path: Path) -> None:
    build(trio, tmp_path / "a.tar", allow_any_size=True)
    folder = unpacked(tmp_path / "a.tar", tmp_path / "elsewhere")
    for run in trio:
        (run.path / "config.json").unlink()  # nothing that the archive was made from is needed
    for path in (tmp_path / "a.tar", folder):
        found = verify.verify_in_new_process(path)
        assert list(found["models"]) == ["reasoning", "memory", "speed"]
        assert all(model["logits_are_bit_equal"] for model in found["models"].values())
        assert found["fit_for_phase_2"] is False


def test_the_readme_tells_how_to_load_it(trio: list[RunDir], tmp_path: Path) -> None:
    """Its code is run, as it stands, where it was unpacked."""
    build(trio, tmp_path / "a.tar", allow_any_size=True)
    folder = unpacked(tmp_path / "a.tar", tmp_path / "elsewhere")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    check = (
        "import torch; expected = load_file('expected_logits.safetensors')\n"
        "for name, (model, tokenizer) in models.items():\n"
        "    logits = model(expected[name + '.tokens'][None]).logits[0, -1]\n"
        "    assert torch.allclose(logits, expected[name + '.logits'], atol=1e-4); print(name, len(write(name, 'Question:')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + check], cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["reasoning", "memory", "speed"], done.stderr


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["manifest.json", "README.md", "memory_best.safetensors", "speed_epoch_2.safetensors", "speed_metrics.csv"]
)
def test_a_flipped_bit_is_refused(trio: list[RunDir], tmp_path: Path, name: str) -> None:
    """Weights load without complaint after a bit flip: the digests are the only witness."""
    archive = tmp_path / "a.tar"
    build(trio, archive, allow_any_size=True)
    with tarfile.open(archive) as files:
        member = files.getmember(f"{FOLDER}/{name}")
    flip(archive, member.offset_data + member.size // 2)
    with pytest.raises(BadArchive, match=r"digest|readable"):
        verify.verify(archive)


def test_a_flipped_bit_between_files_is_refused(trio: list[RunDir], tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    build(trio, archive, allow_any_size=True)
    whole = archive.read_bytes()
    with tarfile.open(archive) as files:
        headers = [member.offset for member in files.getmembers()]
    for offset in headers[:3] + headers[-2:]:
        archive.write_bytes(whole)
        flip(archive, offset + 3)
        with pytest.raises(BadArchive):
            verify.verify(archive)
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadArchive):
        verify.verify(archive)


def forged(folder: Path, change: Callable[[dict[str, Any]], None], **files: Path) -> None:
    """A manifest that goes with what was changed, digests and all."""
    manifest = read_json(folder / "manifest.json")
    change(manifest)
    for path in files.values():
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": verify.hashlib.sha256(path.read_bytes()).hexdigest()}
    del manifest["sha256"]
    manifest["sha256"] = verify.digest_of_manifest(manifest)
    write_json(folder / "manifest.json", manifest)


def test_digests_are_not_all_that_is_checked(trio: list[RunDir], tmp_path: Path) -> None:
    """Other weights under a manifest that names them; a promise of other sizes; a file that nobody named."""
    build(trio, tmp_path / "a.tar", allow_any_size=True)
    folder = unpacked(tmp_path / "a.tar", tmp_path)
    weights = folder / "memory_best.safetensors"
    whole = load_file(weights)
    save_file({name: tensor * 1.01 for name, tensor in whole.items()}, weights)
    forged(folder, lambda _: None, weights=weights)
    with pytest.raises(BadArchive, match="memory does not say of the probe what it said"):
        verify.verify(folder)
    save_file({name: tensor for name, tensor in whole.items() if "halting" not in name}, weights)
    forged(folder, lambda _: None, weights=weights)
    with pytest.raises(BadArchive, match="memory cannot be loaded"):
        verify.verify(folder)
    save_file(whole, weights)
    forged(folder, lambda manifest: manifest["models"][1].update(parameters=5), weights=weights)
    with pytest.raises(BadArchive, match="5 were promised"):
        verify.verify(folder)
    forged(folder, lambda manifest: manifest.update(allow_any_size=False))
    with pytest.raises(BadArchive, match="22,500,000 to 27,500,000 allowed"):
        verify.verify(folder)
    (folder / "notes.txt").write_text("x")
    with pytest.raises(BadArchive, match=r"notes\.txt"):
        verify.verify(folder)


def test_a_tokenizer_that_reads_otherwise_is_refused(trio: list[RunDir], tmp_path: Path) -> None:
    build(trio, tmp_path / "a.tar", allow_any_size=True)
    folder = unpacked(tmp_path / "a.tar", tmp_path)
    tokenizer = folder / "memory_tokenizer.json"
    Tokenizer.train(["of something else"], 280).save(tokenizer)
    forged(folder, lambda _: None, tokenizer=tokenizer)
    with pytest.raises(BadArchive, match=r"memory_tokenizer\.json does not read the probe as it was read"):
        verify.verify(folder)


def test_the_weights_of_an_epoch_are_loaded_too(trio: list[RunDir], tmp_path: Path) -> None:
    build(trio, tmp_path / "a.tar", allow_any_size=True)
    folder = unpacked(tmp_path / "a.tar", tmp_path)
    save_file({}, weights := folder / "memory_epoch_2.safetensors")
    forged(folder, lambda _: None, weights=weights)
    with pytest.raises(BadArchive, match="memory cannot be loaded"):
        verify.verify(folder)


def test_who_is_fit_is_found_out_not_believed(trio: list[RunDir], tmp_path: Path) -> None:
    build(trio, tmp_path / "a.tar", allow_any_size=True)
    folder = unpacked(tmp_path / "a.tar", tmp_path)
    forged(folder, lambda manifest: manifest.update(fit_for_phase_2=True))
    with pytest.raises(BadArchive, match=r"manifest.json says that the models are fit for Phase 2"):
        verify.verify(folder)


def test_what_does_not_verify_leaves_no_archive(trio: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff, "verify_in_new_process", verify.verify_in_new_process)
    monkeypatch.setattr(handoff, "logits_of", lambda net, tokens: verify.logits_of(net, tokens) + 1)
    with pytest.raises(BadArchive, match="does not say of the probe"):
        build(trio, tmp_path / "a.tar", allow_any_size=True)
    assert not list(tmp_path.glob("*a.tar*"))


def test_a_damaged_or_missing_checkpoint_is_refused(trio: list[RunDir], tmp_path: Path) -> None:
    step, _, *_ = [step for step, _ in trio[1].complete_checkpoints()]
    write_json(trio[1].checkpoints / "best.json", {"step": step, "val_loss": 1.0})
    flip(trio[1].checkpoint(step) / "model.safetensors", 5000)
    with pytest.raises(CorruptCheckpoint, match="does not have the digest"):
        build(trio, tmp_path / "a.tar", allow_any_size=True)
    (trio[0].path / "checkpoints").rename(trio[0].path / "gone")
    with pytest.raises(NothingSaved, match="run_reasoning has no checkpoint"):
        build(trio, tmp_path / "a.tar", allow_any_size=True)


# --- as a job ---------------------------------------------------------------------------------------------


def context(folder: Path, runs_dir: Path) -> JobContext:
    return JobContext(folder, runs_dir, Places(None, None), "cpu", lambda sentence, fraction: None)


def spec(*run_ids: str, **changes: Any) -> dict[str, Any]:
    return {"run_ids": list(run_ids), "evaluations": [], "diversity": None, "as_of": {"run_1": "job_1"}, "allow_any_size": True, **changes}


def test_the_job_makes_the_archive(runs_dir: Path, tmp_path: Path) -> None:
    result = perform(spec("run_reasoning", "run_memory", "run_speed"), context(tmp_path, runs_dir))
    archive = tmp_path / result["file"]
    assert result["as_of"] == {"run_1": "job_1"}
    assert (result["bytes"], result["sha256"]) == (archive.stat().st_size, verify.hashlib.sha256(archive.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("run_ids", "changes", "reason"),
    [
        (("run_reasoning", "run_memory", "run_speed"), {"allow_any_size": False}, "not_fit"),
        (("run_reasoning", "run_memory"), {}, "not_fit"),
        (("run_reasoning", "run_memory", "../runs/run_speed"), {}, "run_missing"),
        (("run_reasoning", "run_memory", "run_none"), {}, "run_missing"),
    ],
)
def test_the_job_fails_for_a_reason(runs_dir: Path, tmp_path: Path, run_ids: tuple[str, ...], changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(JobFailed) as failed:
        perform(spec(*run_ids, **changes), context(tmp_path, runs_dir))
    assert failed.value.reason == reason
