"""The software bill of materials of a version, in CycloneDX: the model, what it depends on, and its weights.

Dependencies are those that requirements.txt names; with exact pins they have a version and a package URL.
Source: https://cyclonedx.org/docs/1.6/json/
"""

import re
import uuid
from collections.abc import Iterator
from typing import Any

from modelkit.versions.version import VersionContent

__all__ = ["make_sbom"]

_NAMESPACE = uuid.UUID("6f2c4f5e-6a0b-4d0c-9a55-0f5b8a4d5f10")
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?\s*(?P<rest>[^#;]*)")


def make_sbom(content: VersionContent, version_digest: str) -> dict[str, Any]:
    """Return the document. It is made of the content alone, so that the same version has the same one."""
    components = [*_dependencies(content), *_weights(content)]
    root = f"model:{content.model_id}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, version_digest)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": root,
                "name": content.model_id,
                "version": version_digest,
                "description": str((content.config.get("model") or {}).get("description") or ""),
                "hashes": [_hash(version_digest.partition(":")[2])],
            }
        },
        "components": components,
        "dependencies": [{"ref": root, "dependsOn": [each["bom-ref"] for each in components]}],
    }


def _dependencies(content: VersionContent) -> Iterator[dict[str, Any]]:
    source = next((file.source for file in content.package.files if file.path == "requirements.txt"), None)
    lines = [] if source is None else source.read_text(encoding="utf-8", errors="replace").splitlines()
    seen: set[str] = set()
    for line in lines:
        match = _REQUIREMENT.match(line.strip())
        if match is None:  # an option, a comment, nothing
            continue
        name, rest = re.sub(r"[-_.]+", "-", match["name"]).lower(), match["rest"].strip()
        if name in seen:
            continue
        seen.add(name)
        yield _dependency(name, rest)


def _dependency(name: str, rest: str) -> dict[str, Any]:
    exact = re.fullmatch(r"={2,3}\s*([A-Za-z0-9.+!-]+)", rest)
    component: dict[str, Any] = {"type": "library", "bom-ref": f"pypi:{name}", "name": name}
    if exact is not None:
        component |= {"version": exact[1], "purl": f"pkg:pypi/{name}@{exact[1]}"}
    else:
        component["purl"] = f"pkg:pypi/{name}"
        if rest and not rest.startswith("@"):  # an address may hold a password
            component["properties"] = [{"name": "modelkit:requirement", "value": rest}]
    return component


def _weights(content: VersionContent) -> Iterator[dict[str, Any]]:
    for checkpoint in content.checkpoints:
        for file in checkpoint.files:
            yield {
                "type": "data" if file.path.endswith((".json", ".txt", ".md")) else "file",
                "bom-ref": f"weights:{checkpoint.name}/{file.path}",
                "name": f"{checkpoint.name}/{file.path}",
                "hashes": [_hash(file.sha256)],
                "properties": [{"name": "modelkit:size_bytes", "value": str(file.size_bytes)}],
            }


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}
