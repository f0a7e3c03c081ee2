"""A small model with weights of its own, for tests of what is uploaded and pulled."""

from pathlib import Path

from modelkit.versions.folder import read_folder
from modelkit.versions.upload import upload
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


def send(folder, store, **options):
    """Upload a folder as the command does, without what it prints."""
    content = read_folder(folder).content
    draft, index = compose(content)
    return upload(draft, index, store, signatures=content.signatures, **options)
