"""compose.yaml for an image: one service, with its GPUs, its health check and a volume for what it fetches.

The file is the user's as soon as they change it: it is written again only while it is what was written last.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from modelkit.errors import UsageError
from modelkit.image.plan import CACHE_DIR, GRPC_PORT, HTTP_PORT, ImagePlan

__all__ = ["COMPOSE_NAME", "refuse_foreign_compose", "render_compose", "write_compose"]

COMPOSE_NAME = "compose.yaml"

_MARK = re.compile(r"# modelkit: sha256=(?P<digest>[0-9a-f]{64})\n")
_SHM_SIZE = "16gb"
_STOP_SLACK_S = 10


def render_compose(plan: ImagePlan) -> str:
    """Return compose.yaml for a plan's image, with a first line by which it is known again."""
    import yaml

    body = yaml.safe_dump(_project(plan), sort_keys=False, width=110)
    text = f"# Run it: docker compose up --detach --wait. Stop it: docker compose down\n{body}"
    return f"# modelkit: sha256={_digest(text)}\n{text}"


def refuse_foreign_compose(plan: ImagePlan) -> None:
    """Raise UsageError where the model folder has a compose file that somebody has written."""
    path = plan.model_dir / COMPOSE_NAME
    for other in (path, path.with_suffix(".yml")):
        if other.exists() and not _is_ours(other):
            raise UsageError(
                f"{other} is not as modelkit has written it, and stays as it is",
                cure=f"move it away, or compare: modelkit build {plan.model_dir} --compose --dry-run",
            )


def write_compose(plan: ImagePlan) -> Path:
    """Write compose.yaml into the model folder. Raises UsageError where one is there that somebody has written."""
    refuse_foreign_compose(plan)
    path = plan.model_dir / COMPOSE_NAME
    path.write_text(render_compose(plan), encoding="utf-8")
    return path


def _is_ours(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    mark = _MARK.match(text)
    return mark is not None and mark["digest"] == _digest(text[mark.end() :])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _project(plan: ImagePlan) -> dict[str, Any]:
    name = re.sub(r"[^a-z0-9]+", "-", plan.config.model.id.lower()).strip("-")
    return {"services": {name: _service(plan)}, "volumes": {"cache": {}}}


def _service(plan: ImagePlan) -> dict[str, Any]:
    config = plan.config
    compute, checkpoint = config.compute, config.checkpoints
    # Names alone: compose takes the values from the shell or from .env beside this file.
    names = [secret.env_var for secret in config.secrets]
    if plan.weights == "mounted" and checkpoint is not None and checkpoint.token_env:
        names.append(checkpoint.token_env)
    service: dict[str, Any] = {
        "image": plan.tag,
        # This machine only; without the address, everybody who reaches it.
        "ports": [f"127.0.0.1:{GRPC_PORT}:{GRPC_PORT}", f"127.0.0.1:{HTTP_PORT}:{HTTP_PORT}"],
        "volumes": [f"cache:{CACHE_DIR}"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{round(config.server.drain_timeout_s) + _STOP_SLACK_S}s",
        "healthcheck": {
            "test": ["CMD", *plan.probe],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": f"{round(plan.start_timeout_s)}s",
        },
    }
    if plan.platform:
        service["platform"] = plan.platform
    if names:
        service["environment"] = list(dict.fromkeys(names))
    limits = {}
    if compute.cpu_limit_cores is not None:
        limits["cpus"] = f"{compute.cpu_limit_cores:g}"
    if compute.cpu_memory_bytes is not None:
        limits["memory"] = f"{compute.cpu_memory_bytes}b"
    resources: dict[str, Any] = {"limits": limits} if limits else {}
    if compute.num_accelerators:
        gpus = {"driver": "nvidia", "count": compute.num_accelerators, "capabilities": ["gpu"]}
        resources["reservations"] = {"devices": [gpus]}
        # The processes of a tensor-parallel engine talk through it; Docker's default is 64 MB.
        service["shm_size"] = _SHM_SIZE
    if resources:
        service["deploy"] = {"resources": resources}
    return service
