"""What is rendered for a record: the same text each time, and what Kubernetes and the flavors take."""

from dataclasses import replace

import jsonschema
import pytest
import yaml

from kubernetes_schemas import check
from modelkit.computes import Compute
from modelkit.config import Config
from modelkit.deploy import DeploymentSpec, Record
from modelkit.deploy.kubernetes.canary import canary_objects, route_object
from modelkit.deploy.kubernetes.flavors import serverless_objects, workload_kind
from modelkit.deploy.kubernetes.kinds import adapted
from modelkit.deploy.kubernetes.manifests import as_yaml, dedicated_objects, starting_one
from modelkit.errors import UsageError

COMPUTE = Compute(name="prod", kind="kubernetes", address="prod", namespace="models")
IMAGE = "registry.example.com/team/chat@sha256:" + "a" * 64

PLAIN = {"model": {"id": "Hello.World"}}
CHAT = {
    "model": {"id": "chat"},
    "engine": {"name": "vllm", "start_timeout_s": 900.0, "api_key_env": "UPSTREAM_KEY"},
    "compute": {
        "num_accelerators": 2,
        "accelerator_type": ["NVIDIA-H200", "NVIDIA-H100"],
        "accelerator_memory_bytes": 80 * 1024**3,
        "cpu_limit_cores": 4,
        "cpu_memory_bytes": 64 * 1024**3,
    },
    "checkpoints": {
        "type": "huggingface",
        "repo_id": "Qwen/Qwen2-7B-Instruct",
        "token_env": "HF_TOKEN",
        "when": "runtime",
    },
    "deployment": {"min_replicas": 2, "max_replicas": 5, "target_concurrency": 48},
    "server": {"drain_timeout_s": 120.0},
    "secrets": [{"env_var": "OPENAI_API_KEY", "id": "openai"}],
}


def record(config=CHAT, **fields):
    spec = DeploymentSpec(
        **{
            "name": "chat",
            "model_id": config["model"]["id"],
            "version": "v3",
            "digest": "sha256:" + "b" * 64,
            "config": Config.model_validate(config).model_dump(mode="json"),
            "artifact": IMAGE,
            **fields,
        }
    )
    return Record(spec)


def serverless(config, **deployment):
    return {
        **config,
        "deployment": {"mode": "serverless", "min_replicas": 0, "max_replicas": 3, **deployment},
    }


def shown(objects):
    """The text, with the record left out: it is long, and the record's own tests look at it."""
    objects = [yaml.safe_load(yaml.safe_dump(item)) for item in objects]
    for item in objects:
        if "modelkit/record" in item["metadata"].get("annotations", {}):
            item["metadata"]["annotations"]["modelkit/record"] = "..."
        if "serveConfigV2" in item["spec"]:
            item["spec"]["serveConfigV2"] = "..."
    return as_yaml(objects)


CASES = {
    "plain": lambda: dedicated_objects(record(PLAIN, name="hello"), replace(COMPUTE, namespace=None)),
    "gpus": lambda: dedicated_objects(
        record(
            environment="prod",
            overrides=("engine.max_model_len=8192", "deployment.min_replicas=2"),
            api_key_env="CHAT_KEY",
        ),
        COMPUTE,
    ),
    "cached weights of the version": lambda: dedicated_objects(
        record({**CHAT, "checkpoints": {**CHAT["checkpoints"], "when": "upload"}}),
        replace(COMPUTE, cache_volume="weights"),
    ),
    "by cpu": lambda: dedicated_objects(record(), COMPUTE, num_replicas=9, scales_on_calls=False),
    "keda": lambda: serverless_objects(
        record(serverless(CHAT, scale_to_zero_after_s=120.0)),
        replace(COMPUTE, flavor="keda", endpoint="{name}.models.example.com:80"),
    ),
    "knative": lambda: serverless_objects(record(serverless(CHAT)), replace(COMPUTE, flavor="knative")),
    "kuberay": lambda: serverless_objects(record(serverless(CHAT)), replace(COMPUTE, flavor="kuberay")),
    "canary": lambda: [
        *canary_objects(record(version="v4").spec, COMPUTE, 10),
        route_object(
            record().spec,
            COMPUTE,
            {"name": "public", "namespace": "infra"},
            "chat.models.example.com",
            percent=10,
        ),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_valid_and_as_they_were(case, snapshot):
    objects = CASES[case]()
    for item in objects:
        check(item)
    assert shown(objects) == snapshot


def test_the_check_finds_what_is_wrong():
    objects = {item["kind"]: item for item in CASES["keda"]()}
    objects["HTTPScaledObject"]["spec"]["scaleTargetRef"]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        check(objects["HTTPScaledObject"])
    objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["imagePull"] = "Always"
    with pytest.raises(Exception, match="imagePull"):
        check(objects["Deployment"])


def test_an_older_cluster_gets_the_spelling_it_knows():
    kinds = {item["kind"]: item["apiVersion"] for item in CASES["gpus"]()}
    assert kinds["PodDisruptionBudget"] == "policy/v1"
    old = {"v1", "apps/v1", "policy/v1beta1", "autoscaling/v2beta2"}
    kinds = {item["kind"]: item["apiVersion"] for item in adapted(CASES["gpus"](), old)}
    assert (kinds["PodDisruptionBudget"], kinds["HorizontalPodAutoscaler"]) == (
        "policy/v1beta1",
        "autoscaling/v2beta2",
    )


def test_no_value_of_a_secret_is_in_it(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_topsecret")
    text = as_yaml(dedicated_objects(record(), COMPUTE))
    assert "hf-token" in text
    assert "hf_topsecret" not in text


def test_kuberay_runs_the_application_with_its_bounds():
    (service,) = CASES["kuberay"]()
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    assert deployment["autoscaling_config"]["min_replicas"] == 0
    assert deployment["ray_actor_options"]["num_gpus"] == 2
    assert Record.from_json(deployment["user_config"]["record"]).spec.name == "chat"
    assert config["grpc_options"]["port"] == 9000


def test_serverless_without_a_flavor_names_them_all():
    with pytest.raises(UsageError, match="keda, knative, kuberay"):
        serverless_objects(record(serverless(PLAIN)), COMPUTE)
    with pytest.raises(UsageError, match="'openfaas' is no flavor"):
        serverless_objects(record(serverless(PLAIN)), replace(COMPUTE, flavor="openfaas"))


def test_a_route_without_a_canary_names_no_second_service():
    route = route_object(record().spec, COMPUTE, {"name": "public"}, "chat.example.com")
    names = {ref["name"] for rule in route["spec"]["rules"] for ref in rule["backendRefs"]}
    assert names == {"chat"}


def test_a_new_template_starts_a_replica_where_none_runs_and_other_bounds_do_not():
    compute = replace(COMPUTE, flavor="keda")

    def objects(config=CHAT, **fields):
        return serverless_objects(record(serverless(config), **fields), compute, 0)

    def replicas(items):
        return next(item for item in items if item["kind"] == "Deployment")["spec"]["replicas"]

    current = next(item for item in objects() if item["kind"] == "Deployment")
    assert replicas(starting_one(objects(), current)) == 0
    assert replicas(starting_one(objects(artifact=IMAGE.replace("a" * 64, "c" * 64)), current)) == 1


def test_only_what_a_replica_needs_has_to_be_there():
    (container,) = dedicated_objects(record(), COMPUTE)[2]["spec"]["template"]["spec"]["containers"]
    optional = {
        each["name"]: each["valueFrom"]["secretKeyRef"].get("optional", False) for each in container["env"]
    }
    assert optional == {"OPENAI_API_KEY": False, "HF_TOKEN": True, "UPSTREAM_KEY": True}


def test_a_deployment_is_one_kind_of_object_whichever_mode():
    dedicated, on_demand = (record(config).spec.parsed_config() for config in (CHAT, serverless(CHAT)))
    kinds = [
        workload_kind(config, replace(COMPUTE, flavor=flavor)).name
        for config, flavor in (
            (dedicated, None),
            (dedicated, "kuberay"),
            (on_demand, "keda"),
            (on_demand, "kuberay"),
        )
    ]
    assert kinds == ["Deployment", "Deployment", "Deployment", "RayService"]
