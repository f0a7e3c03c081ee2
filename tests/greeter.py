"""A small model with weights of its own, for tests of what is uploaded and pulled."""

from pathlib import Path

from modelkit.checkpoints.resolve import Terms, make_lock
from modelkit.progress import NO_PROGRESS
from modelkit.versions.folder import add_image, add_weights, read_folder
from modelkit.versions.upload import check_upload, upload
from modelkit.versions.version import compose

CONFIG = """\
model:
  id: greeter
  description: Greets.
checkpoints:
  type: local
  path: checkpoint
"""
MODEL = """\
from modelkit import Model, method


class Greeter(Model):
    @method
    def greet(self, name: str, loudly: bool = False) -> str:
        return f"hello {name}"
"""
WEIGHTS = {
    "config.json": b'{"architectures": ["GreeterForCausalLM"], "torch_dtype": "bfloat16"}',
    "model.safetensors": bytes(range(256)) * 5000,
    "tokenizer/vocab.txt": b"a\nb\n",
    "README.md": b"# weights\n",
}
FILES = {
    "config.yaml": CONFIG.encode(),
    "model.py": MODEL.encode(),
    "requirements.txt": b"numpy==2.1.0\nhttpx>=0.27\n",
    **{f"checkpoint/{name}": data for name, data in WEIGHTS.items()},
}


def write_greeter(folder: Path) -> Path:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def with_weights(folder, progress=NO_PROGRESS, image=None):
    """Read a folder with its checkpoint, which lies in it."""
    read = add_image(read_folder(folder), image)
    lock = make_lock(read.config, folder, Terms(progress=progress, offline=True))
    return add_weights(read, lock, {"default": folder / "checkpoint"})


def send(folder, store, *, tag=None, allow_breaking=False):
    """Upload a folder as the command does, without what it prints."""
    read = with_weights(folder)
    preflight = check_upload(store, read.content.signatures, allow_breaking=allow_breaking)
    draft, index = compose(read.content)
    return upload(draft, index, store, preflight, tag=tag)
