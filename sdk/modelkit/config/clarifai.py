"""Clarifai's spelling of config.yaml, moved onto ours while places are kept, so that a folder written for it loads."""

from collections.abc import Iterator

from modelkit.config.tree import Entry, ListNode, MapNode, Scalar, find, format_path, put, remove
from modelkit.errors import Problem

__all__ = ["HAS_NO_EFFECT", "MOVED", "adopt"]

Keys = tuple[str, ...]

# Where a key of Clarifai's goes. Sections come first: the keys inside are looked for under the section's new name.
MOVED: dict[Keys, Keys] = {
    ("inference_compute_info",): ("compute",),
    ("build_info",): ("build",),
    ("compute", "gpu"): ("compute", "instance"),
    ("compute", "num_gpus"): ("compute", "num_accelerators"),
    ("checkpoints", "ignore_file_patterns"): ("checkpoints", "ignored_file_patterns"),
    ("num_threads",): ("server", "max_concurrency"),
}

# Keys that mean something to Clarifai's platform only, with the reason.
HAS_NO_EFFECT: dict[Keys, str] = {
    ("toolkit",): "model.py or the 'engine' section starts the engine",
    ("mcp_server",): "model.py starts the MCP server",
    ("streaming_video_consumer",): "a method that takes an iterator receives the frames",
    ("compute", "cloud"): "the model runs on your own machines",
    ("compute", "region"): "the model runs on your own machines",
    ("build", "node_version"): "install Node.js with build.system_packages",
}


def adopt(root: MapNode) -> tuple[MapNode, list[Problem]]:
    """Return a layer of config.yaml in our spelling, with what could not be taken over."""
    problems: list[Problem] = []
    for old, new in MOVED.items():
        root = _move(root, old, new, problems)
    for path, reason in HAS_NO_EFFECT.items():
        entry = find(root, path)
        if entry is not None:
            message = f"'{format_path(path)}' has no effect here: {reason}"
            problems.append(entry.key.problem(message, "remove it", severity="warning"))
            root = remove(root, path)
    root, token_problems = _refuse_token(root)
    root, value_problems = _refuse_values(root)
    return root, problems + token_problems + value_problems


def _move(root: MapNode, old: Keys, new: Keys, problems: list[Problem]) -> MapNode:
    entry = find(root, old)
    if entry is None:
        return root
    root = remove(root, old)
    other = find(root, new)
    if other is None:
        return put(root, new, entry)
    message = f"'{format_path(old)}' and '{format_path(new)}' mean the same; the other is on {other.key.describe_place()}"
    problems.append(entry.key.problem(message, f"keep '{format_path(new)}' only"))
    return root


def _refuse_token(root: MapNode) -> tuple[MapNode, list[Problem]]:
    path = ("checkpoints", "hf_token")
    entry = find(root, path)
    if entry is None:
        return root, []
    problem = entry.value.span.problem(
        "an access token does not belong in a file: it would be shipped with the model",
        "export it as HF_TOKEN and write 'token_env: HF_TOKEN' here; revoke a token that was shared",
    )
    return remove(root, path), [] if _is_empty(entry) else [problem]


def _refuse_values(root: MapNode) -> tuple[MapNode, list[Problem]]:
    secrets = root.entries.get("secrets")
    if secrets is None or not isinstance(secrets.value, ListNode):
        return root, []
    items = tuple(
        item.without("value") if isinstance(item, MapNode) else item for item in secrets.value.items
    )
    problems = [
        entry.value.span.problem(
            "a secret's value does not belong in a file: it would be shipped with the model",
            "remove 'value' and set the environment variable 'env_var' where the model runs",
        )
        for entry in _values(secrets.value)
        if not _is_empty(entry)
    ]
    return root.having("secrets", Entry(secrets.key, ListNode(items, secrets.value.span))), problems


def _values(secrets: ListNode) -> Iterator[Entry]:
    for item in secrets.items:
        if isinstance(item, MapNode) and "value" in item.entries:
            yield item.entries["value"]


def _is_empty(entry: Entry) -> bool:
    return isinstance(entry.value, Scalar) and entry.value.value in {None, ""}
