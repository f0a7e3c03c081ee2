"""Train the tiny chat checkpoint that this example serves: a real language model, small enough for a test.

    python train.py [--out DIR] [--arch llama|qwen2] [--force]

A byte-level BPE tokenizer and a decoder of half a million parameters learn `dialogues.json` by heart, until greedy
decoding recites every answer. Nothing is downloaded; it takes about half a minute on one core. The result is an
ordinary Hugging Face folder, which any engine can load, and `qa.json` with every question and its exact answer.
A complete checkpoint is kept: a second run returns at once.
"""

import argparse
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent


def is_complete(out: Path, arch: str) -> bool:
    """`qa.json` is written last and the folder appears in one piece, so its presence vouches for the rest."""
    if not (out / "qa.json").is_file():
        return False
    return bool(json.loads((out / "config.json").read_text(encoding="utf-8"))["model_type"] == arch)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the tiny chat checkpoint.")
    parser.add_argument("--out", type=Path, default=HERE / "checkpoint", help="folder to write")
    parser.add_argument("--arch", choices=("llama", "qwen2"), default="llama")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="train again, though a checkpoint is there")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    if is_complete(out, args.arch) and not args.force:
        print(f"The checkpoint is there already: {out}")
        return 0
    from training import make_checkpoint  # torch takes seconds to import, and is needed only here

    wrong = make_checkpoint(args.arch, out, args.seed)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
