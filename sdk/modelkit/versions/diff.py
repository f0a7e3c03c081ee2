"""What is different between two versions: config, methods, files, weights, dependencies, image, figures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelkit.package import read_member
from modelkit.versions.record import figures, readable_record
from modelkit.versions.signatures import breaking_changes
from modelkit.versions.version import Version

__all__ = ["Change", "Difference", "diff"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was added (`old` is None), removed (`new` is None) or changed."""

    name: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """All changes from one version to another. `breaking` says which of the methods' break callers.

    `record` is how the benchmark's figures moved, where both have some, with what else was different when they were
    measured: another GPU, another load.
    """

    config: tuple[Change, ...] = ()
    methods: tuple[Change, ...] = ()
    breaking: tuple[str, ...] = ()
    files: tuple[Change, ...] = ()
    weights: tuple[Change, ...] = ()
    dependencies: tuple[Change, ...] = ()
    image: tuple[Change, ...] = ()
    record: tuple[Change, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what a script may want to know: every section, empty where nothing changed."""
        return {
            name: [
                each if isinstance(each, str) else {"name": each.name, "old": each.old, "new": each.new}
                for each in getattr(self, name)
            ]
            for name in Difference.__slots__
        }


def diff(old: Version, new: Version) -> Difference:
    """Compare two versions, which may be in different stores."""
    before, after = old.signatures, new.signatures
    return Difference(
        config=_changes(dict(_leaves(old.config)), dict(_leaves(new.config))),
        methods=_changes(_methods(before), _methods(after)),
        breaking=tuple(breaking_changes(before, after)),
        files=_changes(_hashes(old.files), _hashes(new.files)),
        weights=_changes(dict(_weights(old)), dict(_weights(new))),
        dependencies=_changes(_requirements(old), _requirements(new)),
        image=_changes(_images(old), _images(new)),
        record=_moved(old, new),
    )


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Change, ...]:
    names = sorted({*old, *new})
    return tuple(
        Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)
    )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each setting by its dotted path."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    elif value not in (None, [], {}):
        yield path, str(value)


def _methods(document: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{method['kind']} {_arguments(method)}" for name, method in document["methods"].items()}


def _arguments(method: Mapping[str, Any]) -> str:
    parts = [
        f"{each['name']}: {each['type']['kind']}{'' if each['required'] else ' = ...'}"
        for each in method["arguments"]
    ]
    return f"({', '.join(parts)}) -> {method['result']['kind']}"


def _hashes(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {path: str(file["sha256"])[:12] for path, file in files.items()}


def _weights(version: Version) -> Iterator[tuple[str, str]]:
    for name in version.weights:
        for layer in version.weight_layers(name):
            yield f"{name}/{layer.path}", layer.file_sha256[:12]


def _images(version: Version) -> dict[str, str]:
    return {
        f"{(image.platform or {}).get('os')}/{(image.platform or {}).get('architecture')}": image.digest[:19]
        for image in version.images
    }


def _moved(old: Version, new: Version) -> tuple[Change, ...]:
    before, after = (readable_record(each.store, each.index.digest) for each in (old, new))
    return () if before is None or after is None else _changes(_measured(before), _measured(after))


def _measured(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures by what was measured, rounded to what they are good for, and under which conditions."""
    gpus = ", ".join(str(gpu.get("name")) for gpu in record["gpus"])
    said = {"GPU": gpus or "none", **dict(_leaves(record["workload"], "workload"))}
    for each in figures(record):
        name = " ".join(filter(None, (each.engine or each.subject, each.protocol, each.load)))
        said[f"{name} tokens/s"] = f"{each.output_tok_s:,.1f}"
        times = {"TTFT p50, ms": each.ttft_p50_ms, "TPOT p50, ms": each.tpot_p50_ms}
        said |= {f"{name} {what}": f"{value:,.1f}" for what, value in times.items() if value is not None}
    return said


def _requirements(version: Version) -> dict[str, str]:
    """Return the lines of requirements.txt, by the name of the distribution."""
    if "requirements.txt" not in version.files:
        return {}
    text = read_member(version.store.read_blob(version.bundle), "requirements.txt") or b""
    lines = (line.split("#")[0].strip() for line in text.decode(errors="replace").splitlines())
    return dict(_split_requirement(line) for line in lines if line)


def _split_requirement(line: str) -> tuple[str, str]:
    for position, character in enumerate(line):
        if not (character.isalnum() or character in "-_."):
            return line[:position].lower().replace("_", "-") or line, line[position:].strip() or "any"
    return line.lower().replace("_", "-"), "any"
