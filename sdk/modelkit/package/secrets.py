"""Finds secrets in files before they leave this machine: the formats of well-known tokens, and values that are told.

A message names the file and the line, and never the secret.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from modelkit.errors import Problem

__all__ = ["find_secrets"]

_MAX_BYTES = 2 * 1024 * 1024  # code and configuration; data is not read
_MIN_VALUE_CHARACTERS = 8  # a shorter one would be found by chance

_FORMATS: Mapping[str, re.Pattern[bytes]] = {
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b"),
    "an AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b"),
    "a GitLab token": re.compile(rb"\bglpat-[A-Za-z0-9_-]{20,}\b"),
    "an OpenAI or Anthropic key": re.compile(rb"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}\b"),
    "a Slack token": re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{20,}\b"),
}
_CURE = "take it from an environment variable and name that under 'secrets' in config.yaml; or list the file in .modelkitignore"


def find_secrets(files: Iterable[tuple[str, Path]], values: Mapping[str, str]) -> list[Problem]:
    """Return each secret found in files, given as (name, path). `values` are more to look for: NAME of a variable -> value."""
    known = {name: value.encode() for name, value in values.items() if len(value) >= _MIN_VALUE_CHARACTERS}
    found: list[Problem] = []
    for _, path in files:
        if path.stat().st_size > _MAX_BYTES:
            continue
        data = path.read_bytes()
        hits = [
            (match.start(), what) for what, pattern in _FORMATS.items() if (match := pattern.search(data))
        ]
        hits += [
            (data.index(value), f"the value of {name}") for name, value in known.items() if value in data
        ]
        found += [
            Problem(f"the file holds {what}", _CURE, path, line=data.count(b"\n", 0, start) + 1)
            for start, what in sorted(hits)
        ]
    return found
