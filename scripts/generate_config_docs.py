"""Write the generated documents; --check fails where they differ.

docs/config.md and docs/config.schema.json come from the models of config.yaml, the table of options in docs/engines.md
from the engines' adapters.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from modelkit.config import json_schema
from modelkit.config.clarifai import HAS_NO_EFFECT, MOVED
from modelkit.config.tree import format_path
from modelkit.engines import ENGINES
from modelkit.errors import UsageError

DOCS = Path(__file__).resolve().parents[1] / "docs"

INTRODUCTION = """\
# config.yaml

<!-- Made by scripts/generate_config_docs.py from sdk/modelkit/config/models.py: edit there. -->

Every key of a model folder's `config.yaml`. Only `model.id` is required. `modelkit validate` finds every mistake at
once; `modelkit schema` prints the [JSON Schema](config.schema.json) behind the completion in editors, which
`modelkit init` turns on with the first line of the file.

- A key that is not listed here is an error, not ignored. A key without a value has its default.
- The file is YAML 1.2: `no` and `on` are text, `3.10` is the number 3.1 (so quote versions). At most 256 KiB.
- Memory is written as `16Gi` or `500M`, time as `30s`, `5m` or `1h30m`, CPU cores as `"4"` or `500m`.
- Secrets are named, never given: `token_env` and `secrets` hold names of environment variables.

Differences between environments go into an overlay: with `--env prod` (or `MODELKIT_ENV=prod`) the keys of
`config.prod.yaml` are laid over those of `config.yaml`; lists are replaced as a whole. Single keys can be set on the
command line, over both: `--set compute.num_accelerators=2`, `--set 'secrets[0].env_var=API_KEY'` (the number after the
last adds an item; the quotes keep the shell from reading the brackets).
"""

# A value of each common option, to show what an adapter makes of it; other values where an engine has other words.
SAMPLES: dict[str, Any] = {
    "tensor_parallel_size": 2,
    "max_model_len": 8192,
    "dtype": "bfloat16",
    "quantization": "awq",
    "gpu_memory_utilization": 0.9,
    "max_num_seqs": 64,
    "enable_prefix_caching": (True, False),
    "enable_chunked_prefill": (True, False),
    "kv_cache_dtype": "fp8",
    "speculative": {"method": "eagle3", "model": "DRAFT", "num_speculative_tokens": 4},
    "tool_call_parser": "NAME",
    "reasoning_parser": "NAME",
    "lora_modules": {"NAME": "FOLDER"},
    "trust_remote_code": True,
}
OTHER_SAMPLES = {("sglang", "kv_cache_dtype"): "fp8_e4m3"}


def main() -> int:
    """Write or check the files. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a file is not up to date"
    )
    check = parser.parse_args().check
    schema = json_schema()
    files = {
        DOCS / "config.md": "\n".join(render(schema)),
        DOCS / "config.schema.json": json.dumps(schema, indent=2) + "\n",
        DOCS / "engines.md": with_options((DOCS / "engines.md").read_text(encoding="utf-8")),
    }
    stale = [
        path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if not check:
            path.write_text(files[path], encoding="utf-8")
        print(
            f"{path.name} is {'not up to date: run scripts/generate_config_docs.py' if check else 'written'}"
        )
    return 1 if check and stale else 0


def render(schema: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of docs/config.md."""
    yield INTRODUCTION
    for key, value in schema["properties"].items():
        if value.get("deprecated"):
            continue
        name, is_list = section_name(value)
        section = schema["$defs"][name]
        yield f"## {key}\n"
        yield (f"A list. {section['description']}" if is_list else section["description"]) + "\n"
        yield "| key | value | meaning |\n|---|---|---|"
        for below, described in section["properties"].items():
            if not described.get("deprecated"):
                required = " (required)" if below in section.get("required", ()) else ""
                yield f"| `{below}`{required} | {value_text(described)} | {meaning(described)} |"
        yield ""
    yield from render_clarifai()


def render_clarifai() -> Iterator[str]:
    """Yield the lines about keys that Clarifai has and we have not."""
    yield "## Folders written for Clarifai\n"
    yield "They load as they are. These keys are read as ours; giving both spellings is an error.\n"
    yield "| Clarifai | here |\n|---|---|"
    yield from (f"| `{format_path(old)}` | `{format_path(new)}` |" for old, new in MOVED.items())
    yield "\nThese have no effect, and `modelkit validate` says so:\n"
    yield from (f"- `{format_path(path)}`: {reason}." for path, reason in HAS_NO_EFFECT.items())
    yield "\n`checkpoints.hf_token` and `secrets[].value` are refused: a secret in the file would be shipped with the model.\n"


def section_name(schema: dict[str, Any]) -> tuple[str, bool]:
    """Return the definition that a top-level key refers to, and whether it holds a list of them."""
    for choice in [schema, *schema.get("anyOf", ())]:
        items = choice.get("items", choice)
        if "$ref" in items:
            return items["$ref"].rpartition("/")[2], "items" in choice
    raise LookupError(schema)


def value_text(schema: dict[str, Any]) -> str:
    """Say what values a key takes."""
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    first = choices[0]
    examples = first.get("examples", schema.get("examples", ()) if "pattern" in first else ())
    if "const" in first:
        return f"`{first['const']}`"
    if "enum" in first:
        return " \\| ".join(f"`{value}`" for value in first["enum"])
    if examples:
        return " or ".join(f"`{example}`" for example in examples)
    if first.get("type") in {"integer", "number"}:
        return number_text(first)
    words = {
        "array": "list of keys and values" if "$ref" in first.get("items", ()) else "list of text",
        "object": "keys and values",
        "boolean": "`true` \\| `false`",
        "string": "text",
    }
    return words[first["type"]]


def number_text(schema: dict[str, Any]) -> str:
    """Say what numbers a key takes."""
    bounds = [
        f"{sign} {schema[name]}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in schema
    ]
    return " ".join(["whole number" if schema["type"] == "integer" else "number", ", ".join(bounds)]).strip()


def meaning(schema: dict[str, Any]) -> str:
    """Return the description, with the default where it does not say it itself."""
    text = str(schema["description"]).replace("|", "\\|")
    default = schema.get("default")
    if default is None or "Default:" in text:
        return text
    return f"{text} Default: `{json.dumps(default) if isinstance(default, bool) else default}`."


def with_options(page: str) -> str:
    """Return docs/engines.md with the table of options as the adapters have it."""
    before, start, rest = re.split(r"(<!-- options:.*-->\n)", page)
    return (
        f"{before}{start}\n"
        + "\n".join(render_options())
        + "\n\n"
        + rest[rest.index("<!-- end of options") :]
    )


def render_options() -> Iterator[str]:
    """Yield the lines of the table: an option a row, an engine a column."""
    adapters = {name: adapter(info.target) for name, info in ENGINES.items() if info.builds or info.needs_gpu}
    yield f"| option | {' | '.join(adapters)} |"
    yield "|---|" + "---|" * len(adapters)
    for option, sample in SAMPLES.items():
        cells = [
            cell(engine.flags.get(option), OTHER_SAMPLES.get((name, option), sample))
            for name, engine in adapters.items()
        ]
        yield f"| `{option}` | {' | '.join(cells)} |"


def adapter(target: str) -> Any:
    """Import the class that a target names."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def cell(maker: Callable[[Any], list[str]] | None, sample: Any) -> str:
    """Show the arguments for a sample value, or for both values of a switch."""
    if maker is None:
        return "-"
    try:
        made = [" ".join(maker(value)) for value in (sample if isinstance(sample, tuple) else (sample,))]
    except UsageError:
        return "refused"
    shown = [f"`{text}`" for text in made if text]
    return " or ".join(shown) or "always on"


if __name__ == "__main__":
    sys.exit(main())
