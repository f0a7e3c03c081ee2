"""The Dockerfile of a plan: pure text, the same for the same plan.

One template serves every engine; an engine that needs more has a block of its own in its template's folder. Only what
BuildKit 0.8 knows is used (Docker 20.10), and no `# syntax` line, which would have to pull a frontend.
"""

import json

from modelkit.image.plan import (
    APP_DIR,
    CACHE_DIR,
    GRPC_PORT,
    HOME_DIR,
    HTTP_PORT,
    RENDERED_MARK,
    USER_ID,
    VENV_DIR,
    WEIGHTS_DIR,
    ImagePlan,
)
from modelkit.resources import templates_dir

__all__ = ["DEPENDENCIES_DIR", "SECRETS_DIR", "render"]

# In the build context.
DEPENDENCIES_DIR = "dependencies"
# In a step of the build.
SECRETS_DIR = "/run/secrets"

_NAME = "Dockerfile.j2"


def render(plan: ImagePlan, sdk_requirement: str) -> str:
    """Return the Dockerfile. `sdk_requirement` is what pip installs as modelkit, seen from the dependencies' folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(templates_dir()),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - a Dockerfile, never HTML
    )
    environment.filters["quoted"] = _quoted
    environment.filters["exec_form"] = json.dumps
    template = f"{plan.engine}/{_NAME}"
    if not (templates_dir() / template).is_file():
        template = f"_base/{_NAME}"
    return environment.get_template(template).render(_values(plan, sdk_requirement))


def _values(plan: ImagePlan, sdk_requirement: str) -> dict[str, object]:
    return {
        "mark": RENDERED_MARK,
        "base_image": plan.base_image,
        "system_packages": sorted(plan.config.build.system_packages),
        "engine_python": plan.engine_python,
        "cpu_torch": plan.wants_cpu_torch,
        "pip": f"{VENV_DIR}/bin/python -m pip",
        "has_requirements": bool(plan.requirements.lines),
        "sdk_requirement": sdk_requirement,
        "weights": plan.weights,
        "environment": plan.environment,
        "labels": plan.labels,
        "probe": plan.probe,
        "entrypoint": plan.entrypoint,
        "start_period_s": round(plan.start_timeout_s),
        "app_dir": APP_DIR,
        "cache_dir": CACHE_DIR,
        "dependencies_dir": DEPENDENCIES_DIR,
        "grpc_port": GRPC_PORT,
        "home_dir": HOME_DIR,
        "http_port": HTTP_PORT,
        "secrets_dir": SECRETS_DIR,
        "user_id": USER_ID,
        "venv_dir": VENV_DIR,
        "weights_dir": WEIGHTS_DIR,
    }


def _quoted(text: str) -> str:
    """Quote a value for a LABEL line: a Dockerfile would replace $NAME in it."""
    return json.dumps(text, ensure_ascii=False).replace("$", "\\$")
