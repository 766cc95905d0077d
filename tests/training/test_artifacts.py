import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from training.artifacts import (
    MANIFEST,
    ArtifactError,
    Manifest,
    code_fingerprint,
    code_version,
    file_sha256,
    folder_artifact,
    package_versions,
    publish,
    read_manifest,
    verify_manifest,
    write_manifest,
)

FACTS = {
    "variant": "lstm-l30-technical-h128",
    "checksum": "c0ffee",
    "params": {"hidden_size": 128, "dropout": 0.1, "bidirectional": False},
    "feature_names": ("rsi_14", "macd"),
    "dataset_fingerprint": "f" * 64,
    "training_span": (datetime(2019, 1, 2, tzinfo=UTC), datetime(2020, 1, 3, 21, tzinfo=UTC)),
    "seed": 7,
    "code_version": "abc",
    "packages": {"numpy": "2.4.0"},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "scaler").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "scaler" / "mean.npz").write_bytes(b"mean")
    write_manifest(folder, **FACTS)
    return folder


def test_the_sha256_of_a_file_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_manifest_lists_every_file_and_comes_back_equal(model: Path) -> None:
    manifest = verify_manifest(model)
    assert [(each.path, each.size, each.kind) for each in manifest.artifacts] == [
        ("scaler/mean.npz", 4, "npz"),
        ("weights.safetensors", 7, "safetensors"),
    ]
    assert {name: getattr(manifest, name) for name in FACTS} == FACTS
    assert Manifest.from_json(manifest.to_json()) == manifest == read_manifest(model)


def test_writing_the_manifest_again_gives_the_same_bytes(model: Path) -> None:
    before = file_sha256(model / MANIFEST)
    write_manifest(model, **FACTS)
    assert file_sha256(model / MANIFEST) == before


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"Weights"), "changed: weights.safetensors"),
        (lambda folder: (folder / "scaler" / "mean.npz").unlink(), "missing: scaler/mean.npz"),
        (lambda folder: (folder / "more.bin").touch(), "not listed: more.bin"),
        (lambda folder: (folder / MANIFEST).unlink(), "has no manifest.json"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "not a manifest"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "not a manifest"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "not a manifest"),
    ],
)
def test_verifying_names_what_is_wrong(model: Path, harm, said: str) -> None:
    harm(model)
    with pytest.raises(ArtifactError, match=said):
        verify_manifest(model)


def test_only_the_registered_sha256_catches_a_manifest_rewritten_with_the_weights(model: Path) -> None:
    registered = folder_artifact(model).sha256
    verify_manifest(model, sha256=registered)
    (model / "weights.safetensors").write_bytes(b"forged!")
    write_manifest(model, **FACTS)
    verify_manifest(model)
    with pytest.raises(ArtifactError, match=r"manifest\.json changed"):
        verify_manifest(model, sha256=registered)


def test_a_training_span_without_a_time_zone_is_refused(tmp_path: Path) -> None:
    naive = (datetime(2019, 1, 2), datetime(2020, 1, 3))  # noqa: DTZ001
    with pytest.raises(ArtifactError, match="no time zone"):
        write_manifest(tmp_path, **{**FACTS, "training_span": naive})
    assert not (tmp_path / MANIFEST).exists()


def test_a_folder_is_one_artifact_with_the_size_of_all_files(model: Path) -> None:
    artifact = folder_artifact(model)
    assert (artifact.path, artifact.kind) == ("model", "model")
    assert artifact.size == sum(path.stat().st_size for path in model.rglob("*") if path.is_file())


def test_publishing_replaces_the_whole_folder_and_leaves_nothing_beside_it(model: Path, tmp_path: Path) -> None:
    final = tmp_path / "published" / "model"
    shutil.copytree(model, tmp_path / "first")
    (model / "weights.safetensors").unlink()
    write_manifest(model, **FACTS)
    publish(tmp_path / "first", final)
    publish(model, final)
    assert [each.path for each in verify_manifest(final).artifacts] == ["scaler/mean.npz"]
    assert [path.name for path in final.parent.iterdir()] == ["model"]


PUBLISHER = """
    import sys
    from pathlib import Path
    from tests_facts import FACTS
    from training.artifacts import publish, write_manifest
    root = Path(sys.argv[1])
    for turn in range(10**6):
        folder = root / f"{turn}.partial"
        folder.mkdir()
        for name in "abc":
            (folder / name).write_bytes(bytes([turn % 256]) * 50_000)
        write_manifest(folder, **FACTS)
        publish(folder, root / "model")
        print(turn, flush=True)
"""


def test_kill_9_never_leaves_a_part_of_a_folder_under_the_final_name(tmp_path: Path) -> None:
    (tmp_path / "tests_facts.py").write_text(f"import datetime\nFACTS = {FACTS!r}")
    (tmp_path / "publisher.py").write_text(textwrap.dedent(PUBLISHER))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    rng, seen = random.Random(0), 0
    for attempt in range(6):
        root = tmp_path / str(attempt)
        root.mkdir()
        command = [sys.executable, str(tmp_path / "publisher.py"), str(root)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
        if (root / "model").exists():
            verify_manifest(root / "model")
            assert len({path.read_bytes() for path in (root / "model").glob("[abc]")}) == 1
            seen += 1
    assert seen


def test_the_code_version_is_the_commit_and_says_what_was_changed_since(tmp_path: Path, monkeypatch) -> None:
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "tester")
    assert code_version(tmp_path) == "unknown"
    (tmp_path / "model.py").write_text("x = 1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    head = ["git", "-C", str(tmp_path), "rev-parse", "HEAD"]
    sha = subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    assert code_version(tmp_path) == sha
    (tmp_path / "model.py").write_text("x = 2")
    assert code_version(tmp_path) == f"{sha}-dirty"


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "fingerprinted"
    (folder / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/__init__.py", "inner/model.py"):
        (folder / name).write_text("")
    (tmp_path / "lonely.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_code_fingerprint_follows_names_and_contents_only(package: Path) -> None:
    names = ["fingerprinted", "lonely"]
    first = code_fingerprint(names)
    assert code_fingerprint(reversed(names)) == first
    (package / "notes.txt").write_text("not code")
    assert code_fingerprint(names) == first
    (package / "inner" / "model.py").write_text("x = 1")
    changed = code_fingerprint(names)
    (package / "inner" / "model.py").rename(package / "inner" / "other.py")
    assert len({first, changed, code_fingerprint(names), code_fingerprint(["lonely"])}) == 4


def test_fingerprinting_an_unknown_package_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="no package 'nonesuch'"):
        code_fingerprint(["nonesuch"])


def test_package_versions_leave_out_what_is_not_installed() -> None:
    assert package_versions(["pytest", "nonesuch"]) == {"pytest": pytest.__version__}
