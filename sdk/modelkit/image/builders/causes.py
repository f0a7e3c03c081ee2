"""Why a build failed, in the words of somebody who has to mend it: known faults in the last lines, with their cure."""

import re
from dataclasses import dataclass

from modelkit.errors import BuildError
from modelkit.image.plan import ImagePlan
from modelkit.image.requirements import REQUIREMENTS

__all__ = ["build_failure", "pip_failure"]

_SHOWN_LINES = 12


@dataclass(frozen=True, slots=True)
class _Cause:
    pattern: re.Pattern[str]
    message: str
    cure: str


def _cause(pattern: str, message: str, cure: str) -> _Cause:
    return _Cause(re.compile(pattern, re.IGNORECASE), message, cure)


_CAUSES = (
    _cause(
        r"no space left on device",
        "the disk is full",
        "make room: `docker system df` shows what Docker keeps, `docker builder prune` deletes what builds left",
    ),
    _cause(
        r"pull access denied|repository does not exist|manifest unknown|manifest for \S+ not found|: not found$",
        "there is no base image {base}, or it is private",
        "correct build.image in config.yaml; for a private one `docker login REGISTRY` first",
    ),
    _cause(
        r"failed to (?:do request|resolve source metadata|authorize|fetch)|no such host|i/o timeout|registry-1\.docker\.io"
        r"|error pinging|dial tcp",
        "the base image {base} is not here, and its registry cannot be reached",
        "check the network; or name an image that is here, or in a registry of yours, with build.image",
    ),
    _cause(
        r"exec format error",
        "this machine cannot run the steps of an image for another platform",
        "let it emulate one (apt install qemu-user-static binfmt-support), or use `--builder oci`, which runs no steps",
    ),
    _cause(
        r"externally-managed|No module named (?:venv|ensurepip)|ensurepip is not available|python3: (?:command )?not found",
        "the base image {base} has no Python that can make a virtual environment",
        "name one that has Python 3.11 or newer with venv and ensurepip (build.image), such as python:3.12-slim",
    ),
    _cause(
        r"requires a different Python|Package 'modelkit-sdk' requires",
        "the base image {base} has a Python that modelkit does not run on",
        "name one with Python 3.11 or newer (build.image)",
    ),
    _cause(
        r"Unable to locate package (?P<what>\S+)|Package '(?P<what2>\S+)' has no installation candidate",
        "the base image {base} knows no system package '{what}'",
        "correct build.system_packages in config.yaml: names of Debian packages",
    ),
    _cause(
        r"(?:Failed to build|Failed building wheel for|error: command '\S*(?:gcc|g\+\+|cc|cargo)\S*').*",
        "a dependency has to be compiled, and that failed",
        "choose a version that has a wheel, or add what it needs to build.system_packages, such as [build-essential]",
    ),
    _cause(
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|SSLError",
        "the package index has a certificate that the build does not trust",
        "let SSL_CERT_FILE name a file with your proxy's CA: the build gets it as a secret",
    ),
    _cause(
        r"401 Client Error|403 Client Error|401 Unauthorized|User for \S+:",
        "the package index asks for a login",
        "put it into PIP_INDEX_URL or PIP_EXTRA_INDEX_URL, pip.conf or ~/.netrc: the build gets it as a secret",
    ),
    _cause(
        r"NewConnectionError|Temporary failure in name resolution|network is unreachable|Connection refused"
        r"|Connection to \S+ timed out",
        "the package index cannot be reached from the build",
        "check the network and pip's settings; a proxy belongs into HTTPS_PROXY",
    ),
)

_NO_VERSION = re.compile(
    r"(?:No matching distribution found for|satisfies the requirement) (?P<what>[^\s(;]+)"
)
_CONFLICT = re.compile(
    r"Cannot install (?P<what>.+?) because these package versions have conflicting dependencies"
)


def build_failure(plan: ImagePlan, step: str, lines: list[str]) -> BuildError:
    """Return what went wrong in a build: its cause where one is known, the step, and the last lines of it."""
    shown = _shown(lines)
    failure = pip_failure(plan, lines)
    if failure is not None:
        return failure
    for text in reversed([*lines, step]):
        for cause in _CAUSES:
            match = cause.pattern.search(text)
            if match:
                what = next((name for name in match.groupdict().values() if name), "").strip("'")
                return BuildError(
                    cause.message.format(base=plan.base_image, what=what) + shown, cure=cause.cure
                )
    where = f" at the step {' '.join(step.split())[:120]}" if step else ""
    return BuildError(
        f"the build failed{where}{shown}", cure="look at its last lines above; -v shows all of them"
    )


def pip_failure(plan: ImagePlan, lines: list[str]) -> BuildError | None:
    """Return what pip could not resolve, with the line of requirements.txt that asked for it."""
    text = "\n".join(lines)
    network = re.search(
        r"CERTIFICATE_VERIFY|SSLError|NewConnectionError|name resolution|401|403 Client", text
    )
    conflict, missing = _CONFLICT.search(text), _NO_VERSION.search(text)
    if conflict:
        asked = [_place(plan, name) for name in re.split(r",? and |, ", conflict["what"])]
        return BuildError(
            f"these requirements exclude each other: {'; '.join(asked)}{_shown(lines)}",
            cure=f"change the versions in {REQUIREMENTS} so that one set fits all",
        )
    if missing and not network:
        return BuildError(
            f"there is no {missing['what']} for the image's Python: {_place(plan, missing['what'])}{_shown(lines)}",
            cure=f"correct it in {REQUIREMENTS}, or build.python_version in config.yaml",
        )
    return None


def _place(plan: ImagePlan, requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    line = plan.requirements.find(name[0]) if name else None
    if line is None:
        return f"{requirement} (which another requirement asks for)"
    return f"{plan.model_dir / REQUIREMENTS}:{line.line}: {line.text}"


def _shown(lines: list[str]) -> str:
    return "".join(f"\n    {line}" for line in [line for line in lines if line.strip()][-_SHOWN_LINES:])
