"""What an image will be, decided before anything is built: both builders make the same image of the same plan.

The layers lie so that what changes often lies on top: base, system packages, dependencies, weights, code. Nothing is
fetched, asked or written here.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelkit import __version__
from modelkit.checkpoints.lock import DEFAULT_NAME, named_checkpoints
from modelkit.config import Config
from modelkit.engines.catalog import ENGINES, base_image
from modelkit.errors import Problem, UsageError
from modelkit.image.requirements import ImageFile, Requirements, read_requirements
from modelkit.image.sdk_wheel import DISTRIBUTION
from modelkit.package import Package, collect
from modelkit.registry import parse_reference

__all__ = [
    "APP_DIR",
    "CACHE_DIR",
    "GRPC_PORT",
    "HOME_DIR",
    "HTTP_PORT",
    "RENDERED_MARK",
    "USER_ID",
    "VENV_DIR",
    "WEIGHTS_DIR",
    "ImagePlan",
    "Weights",
    "default_tag",
    "local_weights_override",
    "plan_image",
    "sdk_requirement",
    "weights_dir",
]

# Where things are in the image.
VENV_DIR = "/opt/modelkit"
APP_DIR = "/app"
WEIGHTS_DIR = "/weights"
CACHE_DIR = "/cache"
HOME_DIR = "/home/modelkit"
# No user of a base image has it; above 10000, as Kubernetes' guides ask for.
USER_ID = 10001
GRPC_PORT = 50051
HTTP_PORT = 8000

_TORCH_FAMILY = ("torch", "torchvision", "torchaudio", "transformers", "sentence-transformers", "accelerate")

# The first line of a rendered Dockerfile: one that begins so, whoever has changed it, gets the context it was made for.
RENDERED_MARK = "# modelkit: COPY finds app/, weights/ and dependencies/"

_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?")

# Files of a model folder that are about the image and not in it.
_NOT_CODE = frozenset({"Dockerfile", "compose.yaml", "compose.yml", ".dockerignore", ".modelkitignore"})

_PROBE = (
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', {port}, timeout=4); "
    "c.request('GET', '/ready'); raise SystemExit(c.getresponse().status != 200)"
)
_DEFAULT_START_S = 120.0

Weights = Literal["none", "inside", "mounted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """Everything that decides what an image is, but for the bytes of its files.

    `checkpoints` are the names of the weights, "default" and those of further ones. `engine_python` is the base image's interpreter that has the engine, None where modelkit needs none of it. A
    `dockerfile` of the author's own decides what it makes of them.
    """

    config: Config
    model_dir: Path
    base_image: str
    tag: str
    platform: str | None
    requirements: Requirements
    code: tuple[ImageFile, ...]
    weights: Weights
    checkpoints: tuple[str, ...] = ()
    engine_python: str | None = None
    dockerfile: Path | None = None
    serve_options: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @property
    def is_foreign(self) -> bool:
        """Whether the author's Dockerfile was written by hand: the model folder is its context, its entrypoint unknown."""
        if self.dockerfile is None:
            return False
        return not self.dockerfile.read_text(encoding="utf-8", errors="replace").startswith(RENDERED_MARK)

    @property
    def engine(self) -> str:
        """The engine's name, "" for a plain Python model."""
        return self.config.engine.name if self.config.engine else ""

    @property
    def sdk_extras(self) -> str:
        """What modelkit is installed with: the extra of an engine that runs in its process, such as "[transformers]"."""
        info = ENGINES.get(self.engine)
        return f"[{info.extra}]" if info is not None and info.libraries else ""

    @property
    def wants_cpu_torch(self) -> bool:
        """Whether the image needs torch and has no accelerators: the index's build brings gigabytes of CUDA."""
        needs_torch = bool(self.sdk_extras) or self.requirements.has(*_TORCH_FAMILY)
        needs_cuda = self.config.compute.num_accelerators > 0 or self.engine_python is not None
        return needs_torch and not needs_cuda

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the image, but for PATH."""
        offline = {"HF_HUB_OFFLINE": "1"} if self.weights == "inside" else {}
        return {
            "HOME": HOME_DIR,
            "USER": "modelkit",  # for whom the base has no name in /etc/passwd; torch asks for it
            "XDG_CACHE_HOME": CACHE_DIR,
            "HF_HOME": f"{CACHE_DIR}/huggingface",
            "PYTHONUNBUFFERED": "1",
            **offline,
        }

    @property
    def entrypoint(self) -> list[str]:
        """The command of the image, in exec form, so that it gets the signals itself."""
        options = [*self.serve_options]
        if self.engine_python is not None:
            options += ["--set", f"engine.python={self.engine_python}"]
        if self.weights == "inside":
            options += [
                "--set",
                local_weights_override(self.config, {name: weights_dir(name) for name in self.checkpoints}),
            ]
        return [f"{VENV_DIR}/bin/modelkit", "serve", APP_DIR, "--host", "0.0.0.0", *options]  # noqa: S104 - inside

    @property
    def probe(self) -> list[str]:
        """The command of the health check: is the model ready? Python alone, for a slim image has no curl."""
        return [f"{VENV_DIR}/bin/python", "-Ic", _PROBE.format(port=HTTP_PORT)]

    @property
    def start_timeout_s(self) -> float:
        """How long a container may take until it is ready."""
        return self.config.engine.start_timeout_s if self.config.engine else _DEFAULT_START_S

    @property
    def labels(self) -> dict[str, str]:
        """The image's labels; the same for the same folder: no time, no machine."""
        model = self.config.model
        labels = {
            "org.opencontainers.image.title": model.id,
            "org.opencontainers.image.description": " ".join(model.description.split()),
            "org.opencontainers.image.base.name": self.base_image,
            "modelkit.version": __version__,
            "modelkit.engine": self.engine,
        }
        return {name: text for name, text in labels.items() if text}


def plan_image(
    config: Config,
    model_dir: Path,
    *,
    tag: str | None = None,
    platform: str | None = None,
    serve_options: Sequence[str] = (),
    mount_local_weights: bool = False,
) -> ImagePlan:
    """Decide what the image of a model folder is.

    `serve_options` are handed to `modelkit serve` in the image: what was laid over config.yaml here has to be there. With
    `mount_local_weights` a checkpoint that is a folder of this machine is left out: the image is for this machine only.
    Raises UsageError where requirements.txt cannot work in an image, where the tag, the base image or the platform is none; ConfigError
    where a file has a secret in it.
    """
    tag, platform = tag or default_tag(config), platform or config.build.platform
    for name in (tag, base_image(config)):
        parse_reference(name)
    if platform is not None and not _PLATFORM.fullmatch(platform):
        raise UsageError(
            f"'{platform}' is no platform", cure="write OS/ARCH, such as linux/amd64 or linux/arm64"
        )
    own = model_dir / "Dockerfile"
    info = ENGINES[config.engine.name] if config.engine else None
    engine_module = info.module if info is not None and not info.libraries else ""
    requirements = read_requirements(model_dir, provided=engine_module)
    package = _collect(config, model_dir)
    return ImagePlan(
        config=config,
        model_dir=model_dir,
        base_image=base_image(config),
        tag=tag,
        platform=platform,
        requirements=requirements,
        code=tuple(ImageFile(file.path, file.source) for file in package.files if file.path not in _NOT_CODE),
        weights=_weights(config, mount_local=mount_local_weights),
        checkpoints=tuple(named_checkpoints(config.checkpoints)),
        engine_python="python3" if engine_module else None,
        dockerfile=own if own.is_file() else None,
        serve_options=tuple(serve_options),
        notes=tuple(
            f"{text}: left out of the dependencies, the base image has it" for text in requirements.left_out
        ),
        warnings=package.warnings,
    )


def weights_dir(name: str) -> str:
    """Return where a checkpoint is in the image."""
    return f"{WEIGHTS_DIR}/{name}"


def default_tag(config: Config) -> str:
    """Return the name of an image that is for this machine only: the model's id as a repository's name."""
    return re.sub(r"[^a-z0-9]+", "-", config.model.id.lower()).strip("-") + ":dev"


def local_weights_override(config: Config, folders: Mapping[str, str]) -> str:
    """Return the `--set` that makes a server take its checkpoints from folders, wherever config.yaml has them from.

    The pickles that it allows stay allowed: without that the server would refuse to load them.
    """
    pickles = {name: each.allow_pickle for name, each in named_checkpoints(config.checkpoints).items()}
    local = {
        name: f"type: local, path: {folder}"
        + (f", allow_pickle: {json.dumps(pickles[name])}" if pickles[name] else "")
        for name, folder in folders.items()
    }
    further = ", ".join(f"{name}: {{{text}}}" for name, text in local.items() if name != DEFAULT_NAME)
    return f"checkpoints={{{local[DEFAULT_NAME]}" + (f", additional: {{{further}}}" if further else "") + "}"


def sdk_requirement(plan: ImagePlan, wheel: Path | None, folder: str = ".") -> str:
    """Return what pip installs as modelkit: a wheel in `folder`, or this version from the index."""
    name = f"{folder}/{wheel.name}" if wheel is not None else DISTRIBUTION
    return name + plan.sdk_extras + ("" if wheel is not None else f"=={__version__}")


def _weights(config: Config, *, mount_local: bool) -> Weights:
    """Tell where the weights are. Those of a local folder are inside whatever `when` says: no replica could get them."""
    checkpoint = config.checkpoints
    if checkpoint is None:
        return "none"
    is_local = any(each.type == "local" for each in named_checkpoints(config.checkpoints).values())
    is_inside = checkpoint.when == "build" or (is_local and not mount_local)
    return "inside" if is_inside else "mounted"


def _collect(config: Config, model_dir: Path) -> Package:
    """Return the files of the folder but its weights. Raises ConfigError where one has a secret of config.yaml in it."""
    local = [
        model_dir / Path(each.path).expanduser()
        for each in named_checkpoints(config.checkpoints).values()
        if each.type == "local" and each.path is not None
    ]
    values = {secret.env_var: os.environ.get(secret.env_var, "") for secret in config.secrets}
    return collect(
        model_dir, without=local, secret_values={name: text for name, text in values.items() if text}
    )
