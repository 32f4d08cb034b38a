"""An archive that its `archive.toml` describes, file by file, where they lie."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from flforensics.archive import MANIFEST
from flforensics.archive.manifest import Manifest, read_manifest
from flforensics.archive.weights import Weight, read_extras, read_weights
from flforensics.errors import EvidenceError, UsageError
from flforensics.evidence import EvidenceFile, open_evidence
from flforensics.formats import open_checkpoint
from flforensics.rounds import Checkpoint, ClientModel, Round, StoredModel, spans


@dataclass(frozen=True)
class Archive:
    """A folder of evidence. Every file that is opened through it is remembered for the digest.

    Inside `hashing()` files are hashed on another thread from the moment they are opened. Sent to another process,
    it is the same folder with nothing opened; `admit` takes back what was read there.
    """

    root: Path
    manifest: Manifest
    opened: dict[str, EvidenceFile] = field(default_factory=dict, repr=False)
    _hashers: list[ThreadPoolExecutor] = field(default_factory=list, repr=False)
    _hashed: dict[str, "Future[str]"] = field(default_factory=dict, repr=False)
    _read: dict[str, str] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent as its folder."""
        return open_declared, (self.root.absolute(),)

    @cached_property
    def fusions(self) -> tuple[int, ...]:
        """The rounds that have clients, or weights that say that they had some, in order."""
        weights = self.manifest.layout.weights
        found = weights.find(self.root) if weights and "round" in weights.fields else ()
        return tuple(sorted({*self._labels, *(int(values["round"]) for values in found)}))

    @cached_property
    def globals(self) -> tuple[int, ...]:
        """The rounds that have a global, in order."""
        return tuple(sorted({int(self._number(found)) for found in self.manifest.layout.fused.find(self.root)}))

    def round(self, number: int) -> Round:
        """One round. Raises UsageError if it does not exist, EvidenceError if a file of it is rejected."""
        if number not in self.fusions:
            raise UsageError(f"round {number} is not in this archive", hint=f"it holds {spans(self.fusions)}")
        layout = self.manifest.layout
        weights, extras = self._weights(number), self._extras(number)
        labels = [*weights, *(label for label in self._files_of(number) if label not in weights)]
        return Round(
            number=number,
            previous=self._previous(number),
            clients=tuple(
                replace(self._client(number, label, weights), extras=extras.get(label, {})) for label in labels
            ),
            fused=self.stored_global(number),
            values=layout.values,
        )

    def stored_global(self, number: int) -> StoredModel:
        """The global that came out of round `number`."""
        return self._model(self.manifest.layout.fused.fill(round_=number))

    def resource(self, name: str) -> EvidenceFile:
        """A file of the archive by its relative path. Raises EvidenceError (MISSING, OUTSIDE, ...)."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise EvidenceError(
                f"{name} is not a path inside the archive", reason="OUTSIDE", file=name, hint="use a relative path"
            )
        if name not in self.opened:
            file = self.opened[name] = open_evidence(self.root / path, name, root=self.root)
            if self._hashers:
                self._hashed[name] = self._hashers[-1].submit(lambda: file.sha256)
        return self.opened[name]

    @contextmanager
    def hashing(self) -> Iterator[None]:
        """Hash what is opened in this block while its owner works; what is left when it fails is dropped."""
        pool = ThreadPoolExecutor(1)
        self._hashers.append(pool)
        try:
            yield
        finally:
            self._hashers.remove(pool)
            pool.shutdown(cancel_futures=True)

    def tensors(self, file: EvidenceFile) -> Checkpoint:
        """The tensors of a file that is no model, such as stored inputs."""
        return open_checkpoint(file)

    def files(self, number: int) -> tuple[str, ...]:
        """The paths that belong to round `number` and exist."""
        layout = self.manifest.layout
        names = [layout.fused.fill(round_=number)]
        names += [layout.client.fill(round_=number, client=label) for label in self._files_of(number)]
        return tuple(name for name in names if (self.root / name).is_file())

    def sums(self) -> dict[str, str]:
        """SHA-256, hexadecimal, of every file that was opened so far, by path."""
        return {
            name: self._hashed[name].result() if name in self._hashed else file.sha256
            for name, file in self.opened.items()
        }

    def admit(self, sums: Mapping[str, str]) -> None:
        """Count files that were read, here or by another process, for the digest.

        Raises EvidenceError (CHANGED) where the same path was read with other bytes before.
        """
        for name, digest in sums.items():
            if self._read.setdefault(name, digest) != digest:
                raise EvidenceError(
                    f"{name} was read twice, with different bytes",
                    reason="CHANGED",
                    file=name,
                    hint="work on a copy that nobody writes to",
                )

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted lines `sha256  path` of exactly the files that were read."""
        self.admit(self.sums())
        lines = sorted(f"{digest}  {name}\n" for name, digest in self._read.items())
        return "sha256:" + hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    @cached_property
    def _labels(self) -> Mapping[int, tuple[str, ...]]:
        """The clients' labels by round, in natural order."""
        found: dict[int, list[str]] = {}
        for values in self.manifest.layout.client.find(self.root):
            found.setdefault(int(self._number(values)), []).append(str(values["client"]))
        return {number: tuple(sorted(labels, key=_natural)) for number, labels in found.items()}

    def _files_of(self, number: int) -> tuple[str, ...]:
        """The labels of the clients that have a file in round `number`."""
        return self._labels.get(number, ())

    def _number(self, found: Mapping[str, int | str]) -> int | str:
        number = found.get("round", self.manifest.layout.round)
        if number is None:
            raise UsageError(f"{MANIFEST}: [layout] key 'client' must contain {{round}}", hint="or give `round`")
        return number

    def _model(self, name: str) -> StoredModel:
        file = self.resource(name)
        folder = PurePosixPath(name).parent
        tensors = open_checkpoint(
            file, key=self.manifest.layout.key, siblings=lambda sibling: self.resource(str(folder / sibling))
        )
        return StoredModel(tensors, name)

    def _previous(self, number: int) -> StoredModel | None:
        """The global of round − 1 exactly, never the nearest one that exists."""
        declared, fused = self.manifest.layout.previous, self.manifest.layout.fused
        if declared is not None:
            name = declared.fill(round_=number)
        elif "round" in fused.fields and number > 0:
            name = fused.fill(round_=number - 1)
        else:
            return None
        try:
            self.resource(name)
        except EvidenceError as error:
            if error.reason != "MISSING":
                raise
            return None
        return self._model(name)

    def _client(self, number: int, label: str, weights: Mapping[str, Weight]) -> ClientModel:
        weight = weights.get(label)
        name = self.manifest.layout.client.fill(round_=number, client=label)
        model = self._model(name) if label in self._files_of(number) else None
        if self.manifest.layout.weights_kind == "equal":
            return ClientModel(label, 1.0, model)
        if weight is None:
            return ClientModel(label, None, model)
        return ClientModel(label, weight.value, model, weight.uncertainty)

    def _weights(self, number: int) -> Mapping[str, Weight]:
        layout = self.manifest.layout
        if layout.weights is None or layout.weights_kind == "equal":
            return {}
        file = self.resource(layout.weights.fill(round_=number))
        return read_weights(file, rounded=layout.weights_kind == "coefficients")

    def _extras(self, number: int) -> Mapping[str, Mapping[str, float]]:
        template = self.manifest.layout.extras
        return {} if template is None else read_extras(self.resource(template.fill(round_=number)))


def open_declared(root: Path) -> Archive:
    """The archive whose manifest lies in `root`."""
    manifest = open_evidence(root / MANIFEST, MANIFEST, root=root)
    return Archive(root, read_manifest(manifest), {MANIFEST: manifest})


def _natural(label: str) -> list[tuple[int, str]]:
    """A key that sorts `client-2` before `client-10`."""
    return [
        (int(part), "") if part.isascii() and part.isdigit() else (-1, part)
        for part in re.split("([0-9]+)", label)
    ]
