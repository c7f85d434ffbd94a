"""`python -m cognate.report.verify ARCHIVE` checks a hand-off archive, or the folder it was unpacked to, with nothing but what is in it.

Every file has the digest in the manifest and there is no other. All weights load into the shape that their model's configuration gives;
every model has as many parameters as promised, reads the probe as the tokens that it was, and says of it what it said when the archive
was made. Whether the models are what Phase 2 was promised is found out here, whatever the manifest says.

On another machine the last bits of the logits may differ, so they are compared to within TOLERANCE; the result says whether they were
bit-equal.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cognate.config import SPECIALISTS, ConfigError, parse
from cognate.data.tokenizer import Tokenizer
from cognate.model import Cognate
from cognate.precision import use_whole_vectors
from cognate.rundir import MANIFEST, digest_of_manifest

FOLDER: Final = "cognate-phase1"
EXPECTED: Final = "expected_logits.safetensors"
PARAMETERS: Final = (22_500_000, 27_500_000)  # 25 M within 10 %: what Phase 2 takes
# Logits of a float32 model on other processors, or with other thread counts, differ by less than 1e-5 of their size.
TOLERANCE: Final = 1e-4

Files = Mapping[str, Callable[[], bytes]]


class BadArchive(RuntimeError):
    """An archive that is not what its manifest says."""


def verify(path: Path) -> dict[str, Any]:
    """Check everything; what was found of each model. Raises BadArchive."""
    try:
        with _opened(path) as files:
            manifest = _manifest(files)
            for name, known in manifest["files"].items():
                content = files[name]()
                if len(content) != known["bytes"] or hashlib.sha256(content).hexdigest() != known["sha256"]:
                    raise BadArchive(f"{name} does not have the size and digest in {MANIFEST}")
            if len(manifest["models"]) != 3:
                raise BadArchive(f"there are {len(manifest['models'])} models, not three")
            found = {model["name"]: _check(model, files, manifest) for model in manifest["models"]}
            is_fit = _is_fit(found.values())
            if manifest["fit_for_phase_2"] != is_fit:
                is_not = "not " if is_fit else ""
                raise BadArchive(f"{MANIFEST} says that the models are {is_not}fit for Phase 2, and that is not so")
            return {"files": len(files), "fit_for_phase_2": is_fit, "models": found}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadArchive(f"{path.name} cannot be read: {error}") from error


def _is_fit(models: Iterable[Mapping[str, Any]]) -> bool:
    least, most = PARAMETERS
    of_preset = {model["preset"]: model["parameters"] for model in models}
    return of_preset.keys() == set(SPECIALISTS) and all(least <= parameters <= most for parameters in of_preset.values())


def verify_in_new_process(path: Path) -> dict[str, Any]:
    """verify(), by a process that knows nothing of how the archive was made. Raises BadArchive."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "cognate.report.verify", str(path.resolve())]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BadArchive(done.stderr.strip().rpartition("\n")[2] or f"the check ended with code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@torch.no_grad()
def logits_of(model: Cognate, tokens: Sequence[int]) -> Tensor:
    """What the model says comes after the tokens: float32 [vocabulary], on the CPU."""
    use_whole_vectors(next(model.parameters()).device)  # the bits of both sides depend on it
    logits: Tensor = model(torch.tensor([list(tokens)])).logits[0, -1]
    return logits.clone()


@contextmanager
def _opened(path: Path) -> Iterator[Files]:
    """Every file of a tar or a folder by its name, read when it is called for."""
    if path.is_dir():
        yield {file.name: file.read_bytes for file in path.iterdir()}
        return
    with tarfile.open(path, "r:") as archive:
        files: dict[str, Callable[[], bytes]] = {}
        for member in archive:
            folder, _, name = member.name.partition("/")
            if folder != FOLDER or not name or name in files or not member.isreg():
                raise BadArchive(f"{member.name!r} does not belong there")
            files[name] = partial(_content, archive, member)
        yield files


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "only regular files are asked for"
    with file:
        return file.read()


def _manifest(files: Files) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(files[MANIFEST]())
        is_whole = manifest["sha256"] == digest_of_manifest(manifest)
        named = {MANIFEST, *manifest["files"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadArchive(f"no readable {MANIFEST}: {type(error).__name__}") from error
    if not is_whole:
        raise BadArchive(f"{MANIFEST} does not have its own digest")
    if odd := sorted(named ^ files.keys()):
        raise BadArchive(f"{', '.join(odd)}: in the archive or in {MANIFEST}, but not in both")
    return manifest


def _check(described: Mapping[str, Any], files: Files, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Load a model and let it speak."""
    name = described["name"]
    try:
        config = parse(json.loads(files[f"{name}_config.json"]()))
        tokenizer = Tokenizer.read(files[f"{name}_tokenizer.json"](), f"{name}_tokenizer.json")
        model = Cognate(config.model)
        for weights in (file for file in files if file.startswith(f"{name}_epoch_")):
            model.load_state_dict(load(files[weights]()))
        model.load_state_dict(load(files[f"{name}_best.safetensors"]()))
        expected = load(files[EXPECTED]())
        tokens, logits = expected[f"{name}.tokens"].tolist(), expected[f"{name}.logits"]
    except (KeyError, ValueError, RuntimeError, ConfigError, SafetensorError) as error:
        raise BadArchive(f"{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    if tokenizer.encode(manifest["probe"]) != tokens:
        raise BadArchive(f"{name}_tokenizer.json does not read the probe as it was read")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    least, most = PARAMETERS
    if parameters != described["parameters"] or not (manifest["allow_any_size"] or least <= parameters <= most):
        raise BadArchive(f"{name} has {parameters:,} parameters; {described['parameters']:,} were promised, {least:,} to {most:,} allowed")
    found = logits_of(model.eval(), tokens)
    difference = float((found - logits).abs().max()) / max(1.0, float(logits.abs().max()))
    if not difference <= TOLERANCE:
        raise BadArchive(f"{name} does not say of the probe what it said: its logits are off by {difference:.2g} of their size")
    is_equal = torch.equal(found, logits)
    return {"preset": config.preset, "parameters": parameters, "logits_are_bit_equal": is_equal, "logits_difference": difference}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m cognate.report.verify ARCHIVE; there are {len(sys.argv) - 1} arguments")
    try:
        print(json.dumps(verify(Path(sys.argv[1]))))
    except BadArchive as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
