"""Saved models as plain folders: what is in them, proven by checksums, and published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypedDict, Unpack

MANIFEST: Final = "manifest.json"
UNKNOWN_VERSION: Final = "unknown"


class ArtifactError(RuntimeError):
    """A saved model that isn't what its manifest says, or has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A file of a saved model, ``path`` relative to its folder; or the whole folder (``kind`` is ``model``).

    ``kind`` is the format: the file's suffix without its dot. ``size`` is in bytes. A folder's ``sha256`` is that of
    its manifest, which holds the checksum of every other file.
    """

    path: str
    sha256: str
    size: int
    kind: str


class Facts(TypedDict):
    """What a manifest says of a model besides its files.

    ``checksum`` is the canonical one, over fitted arrays and parameters, which must repeat on refitting.
    ``training_span`` holds the first and last sample time learned from (aware UTC).
    """

    variant: str
    checksum: str
    params: Mapping[str, str | int | float | bool]
    feature_names: tuple[str, ...]
    dataset_fingerprint: str
    training_span: tuple[datetime, datetime]
    seed: int
    code_version: str
    packages: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The facts of a saved model (see ``Facts``) and its files in the order of their paths."""

    variant: str
    checksum: str
    params: Mapping[str, str | int | float | bool]
    feature_names: tuple[str, ...]
    dataset_fingerprint: str
    training_span: tuple[datetime, datetime]
    seed: int
    code_version: str
    packages: Mapping[str, str]
    artifacts: tuple[Artifact, ...]

    def to_json(self) -> str:
        """As text that is the same for equal manifests."""
        span = [time.astimezone(UTC).isoformat() for time in self.training_span]
        return json.dumps({**asdict(self), "training_span": span}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read back ``to_json``; whatever isn't a manifest is an ``ArtifactError``."""
        try:
            facts = json.loads(text)
            start, end = facts.pop("training_span")
            return cls(
                artifacts=tuple(Artifact(**each) for each in facts.pop("artifacts")),
                feature_names=tuple(facts.pop("feature_names")),
                training_span=(datetime.fromisoformat(start), datetime.fromisoformat(end)),
                **facts,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"not a manifest of this version: {error!r}; fit and save the model again") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, **facts: Unpack[Facts]) -> Manifest:
    """Write ``manifest.json`` over all files of the folder; the last thing to do before ``publish``."""
    if any(time.tzinfo is None for time in facts["training_span"]):
        raise ArtifactError(f"training_span {facts['training_span']} has no time zone; pass aware UTC times")
    artifacts = tuple(_artifact(folder, name) for name in sorted(_files(folder)))
    manifest = Manifest(**facts, artifacts=artifacts)
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a saved model as it stands, unverified."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST}: it is not a saved model, or its writing was cut short")
    return Manifest.from_json(path.read_text(encoding="utf-8"))


def verify_manifest(folder: Path, *, sha256: str | None = None) -> Manifest:
    """Check every file against the manifest, and the manifest against ``sha256`` where the registry recorded one.

    Raises ``ArtifactError`` naming the files that changed, are missing, or are there without being listed.
    """
    manifest = read_manifest(folder)
    if sha256 is not None and (got := file_sha256(folder / MANIFEST)) != sha256:
        raise ArtifactError(f"{folder / MANIFEST} changed: its SHA-256 is {got}, registered was {sha256}")
    listed, there = {each.path: each for each in manifest.artifacts}, _files(folder)
    changed = sorted(name for name in listed.keys() & there if _artifact(folder, name) != listed[name])
    missing, extra = sorted(listed.keys() - there), sorted(there - listed.keys())
    wrong = {"changed": changed, "missing": missing, "not listed": extra}
    if any(wrong.values()):
        said = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        raise ArtifactError(f"{folder} is not what was saved ({said}); don't use it, fit the model again")
    return manifest


def folder_artifact(folder: Path) -> Artifact:
    """A saved model as one artifact: the manifest's SHA-256 and the size of all files in bytes."""
    sizes = [(folder / name).stat().st_size for name in (*_files(folder), MANIFEST)]
    return Artifact(path=folder.name, sha256=file_sha256(folder / MANIFEST), size=sum(sizes), kind="model")


def publish(folder_tmp: Path, folder: Path) -> None:
    """Move a finished folder to its final name, replacing what is there; both on one file system.

    Whenever the process is killed, ``folder`` is the old one, absent, or the new one: never a part of one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old")
    if folder.exists():
        folder.rename(old)
    folder_tmp.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def code_version(root: Path) -> str:
    """Git SHA of the checkout at ``root``, with ``-dirty`` where tracked files changed; ``unknown`` outside git."""
    git = shutil.which("git")
    if git is None:
        return UNKNOWN_VERSION
    describe = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    command = [git, "--no-optional-locks", "-C", str(root), *describe]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return answer.stdout.strip() if answer.returncode == 0 else UNKNOWN_VERSION


def code_fingerprint(packages: Iterable[str]) -> str:
    """SHA-256 over the names and bytes of all Python files of these packages or modules, in sorted order."""
    digest = hashlib.sha256()
    for name, path in sorted(file for package in set(packages) for file in _sources(package)):
        digest.update(f"{name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions, without importing them; one that isn't installed is left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {MANIFEST}


def _artifact(folder: Path, name: str) -> Artifact:
    path = folder / name
    kind = path.suffix.removeprefix(".") or "file"
    return Artifact(path=name, sha256=file_sha256(path), size=path.stat().st_size, kind=kind)


def _sources(package: str) -> list[tuple[str, Path]]:
    spec = find_spec(package)
    if spec is None:
        raise ArtifactError(f"no package {package!r} to fingerprint; name importable packages or modules")
    if spec.submodule_search_locations is None:
        return [(package, Path(str(spec.origin)))]
    roots = [Path(root) for root in spec.submodule_search_locations]
    return [(f"{package}/{path.relative_to(root).as_posix()}", path) for root in roots for path in root.rglob("*.py")]
