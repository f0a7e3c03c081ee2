"""What Ray Serve is told, from what config.yaml says."""

import json
import socket
from dataclasses import replace

import pytest
import yaml

from modelkit.config import Config
from modelkit.config.accelerators import accelerators
from modelkit.deploy.ray_serve.accelerators import ray_name, type_selectors
from modelkit.deploy.ray_serve.manifest import (
    application,
    is_ours,
    read_mark,
    read_record,
    read_replica_args,
    serve_options,
    with_application,
    without_application,
)
from modelkit.deploy.ray_serve.ports import free_block
from modelkit.deploy.record import DeploymentSpec, Record


def spec_of(**sections):
    config = Config.model_validate({"model": {"id": "chat"}, **sections})
    return DeploymentSpec(
        name="chat",
        model_id="chat",
        version="v2",
        digest="sha256:" + "2" * 64,
        config=config.model_dump(mode="json"),
        artifact="gcs://modelkit-" + "a" * 64 + ".zip",
    )


def options_of(**sections):
    return application(Record(spec_of(**sections)))["deployments"][0]


def test_the_application_as_it_is_sent(snapshot):
    spec = spec_of(
        deployment={
            "mode": "serverless",
            "max_replicas": 3,
            "scale_to_zero_after": "2m",
            "target_concurrency": 8,
        },
        compute={
            "num_accelerators": 2,
            "cpu_limit": "4",
            "cpu_memory": "16Gi",
            "accelerator_type": ["NVIDIA-H200", "NVIDIA-A100-*"],
        },
        server={"max_concurrency": 64, "max_queue": 100, "drain_timeout": "1m"},
    )
    assert yaml.safe_dump(application(Record(spec)), sort_keys=False, width=110) == snapshot


def test_the_options_of_a_set_up(snapshot):
    assert yaml.safe_dump(serve_options(), sort_keys=False) == snapshot


def test_replicas_that_are_always_as_many_are_bounds_too():
    """From bounds to a number Ray would replace every replica."""
    options = options_of(deployment={"min_replicas": 2})
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["initial_replicas"], scaling["max_replicas"]) == (2, 2, 2)
    assert "num_replicas" not in options


def test_more_replicas_at_most_than_at_least_are_autoscaled():
    scaling = options_of(deployment={"min_replicas": 1, "max_replicas": 4})["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["initial_replicas"], scaling["max_replicas"]) == (1, 1, 4)


def test_a_serverless_version_shows_that_it_starts():
    scaling = options_of(deployment={"mode": "serverless"})["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["initial_replicas"]) == (0, 1)
    assert scaling["look_back_period_s"] > 10  # Ray is to refuse less


def test_no_queue_is_the_shortest_that_ray_knows():
    assert options_of(server={"max_queue": 0})["max_queued_requests"] == 1


def test_a_share_of_a_gpu():
    resources = options_of(compute={"num_accelerators": 1, "accelerator_fraction": 0.25})["ray_actor_options"]
    assert resources == {"num_cpus": 1.0, "num_gpus": 0.25}


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        ({}, []),
        ({"accelerator_type": ["NVIDIA-*"]}, []),
        ({"accelerator_type": ["NVIDIA-H200", "*"]}, []),
        ({"accelerator_type": ["NVIDIA-H100"]}, [["H100"]]),
        ({"accelerator_type": ["NVIDIA-H200", "NVIDIA-A100-*"]}, [["H200"], ["A100"]]),
        ({"accelerator_type": ["NVIDIA-RTX-5090"]}, [["GeForce-RTX-5090"]]),
        ({"accelerator_type": ["NVIDIA-X999"]}, [["X999"]]),
        ({"accelerator_type": ["NVIDIA-A*"], "accelerator_memory": "30Gi"}, [["A100"]]),
    ],
)
def test_accelerators_by_rays_names(compute, expected):
    config = Config.model_validate({"model": {"id": "m"}, "compute": {"num_accelerators": 1, **compute}})
    assert type_selectors(config.compute) == expected


def test_memory_alone_chooses_all_types_that_have_it():
    config = Config.model_validate(
        {"model": {"id": "m"}, "compute": {"num_accelerators": 1, "accelerator_memory": "100Gi"}}
    )
    (names,) = type_selectors(config.compute)
    assert "H200" in names
    assert "H100" not in names


def test_every_known_card_has_a_name_on_ray():
    names = {ray_name(driver) for each in accelerators() for driver in each.nvidia_smi_names}
    assert {"H100", "H200", "A100", "L40S", "T4", "V100", "RTX-PRO-6000"} <= names
    assert all(" " not in name and name for name in names)


def test_scaling_leaves_the_replicas_arguments_as_they_are():
    record = Record(spec_of())
    wider = record.scaled(2, 5)
    bounds = wider.spec.parsed_config().deployment
    assert (bounds.min_replicas, bounds.max_replicas) == (2, 5)
    before, after = application(record), application(wider)
    assert before["args"] == after["args"]
    assert before["runtime_env"] == after["runtime_env"]
    assert before["deployments"] != after["deployments"]


def test_the_record_comes_back():
    record = Record(spec_of(), (spec_of(engine={"name": "echo"}),))
    app = application(record)
    assert is_ours(app)
    assert read_record(app) == record
    assert read_record(json.loads(json.dumps(app))) == record


def test_the_replica_reads_what_was_written_for_it():
    spec = spec_of()
    got, host = read_replica_args(application(Record(spec), public_host="127.0.0.1")["args"])
    assert host == "127.0.0.1"
    assert (got.name, got.artifact, got.overrides) == (spec.name, spec.artifact, ())
    assert got.parsed_config().server == spec.parsed_config().server


def test_a_canary_is_an_application_of_its_own():
    app = application(Record(spec_of()), canary_percent=20)
    assert (app["name"], app["route_prefix"]) == ("chat.canary", "/chat.canary")
    assert read_mark(app) == 20


def test_others_applications_stay():
    foreign = {"name": "theirs", "import_path": "theirs:app"}
    app = application(Record(spec_of()))
    assert not is_ours(foreign)
    assert with_application([foreign, {"name": "chat", "old": True}], app) == [foreign, app]
    assert without_application([foreign, app], {"chat"}) == [foreign]


def test_no_value_of_a_secret_is_sent(monkeypatch):
    monkeypatch.setenv("HIDDEN", "the-value")
    app = application(Record(spec_of(secrets=[{"env_var": "HIDDEN"}])))
    assert "HIDDEN" in json.dumps(app)
    assert "the-value" not in json.dumps(app)


@pytest.mark.parametrize(
    "deployments",
    [
        None,
        [],
        [{"user_config": None}],
        [{"user_config": {"record": 3}}],
        [{"user_config": {"record": "{}"}}],
        [{"user_config": {"record": Record(replace(spec_of(), config={"newer": 1})).to_json()}}],
    ],
)
def test_a_record_of_something_else_says_no_more_than_the_name(deployments):
    record = read_record({"name": "chat.canary", "deployments": deployments})
    assert not record.is_readable
    assert record.spec.name == "chat"
    assert read_mark({"deployments": deployments}) == 0


@pytest.mark.parametrize(
    ("bounds", "num_wanted", "initial"),
    [((1, 8), 8, 8), ((0, 8), 0, 1), ((1, 4), 8, 4), ((3, 8), 2, 3)],
)
def test_a_new_version_starts_with_as_many_replicas_as_there_are(bounds, num_wanted, initial):
    """Ray goes back to `initial_replicas` with every change: 8 replicas under load would become one."""
    low, high = bounds
    old = application(Record(spec_of()))
    there = {"deployed_app_config": old, "deployments": {"model": {"target_num_replicas": num_wanted}}}
    wanted = Record(spec_of(engine={"name": "echo"}).scaled(low, high))
    scaling = application(wanted, there=there)["deployments"][0]["autoscaling_config"]
    assert scaling["initial_replicas"] == initial


@pytest.mark.parametrize("num_wanted", [0, 8])
def test_scaling_goes_on_with_what_runs(num_wanted):
    record = Record(spec_of().scaled(0, 8))
    there = {
        "deployed_app_config": application(record),
        "deployments": {"model": {"target_num_replicas": num_wanted}},
    }
    scaling = application(record.scaled(0, 10), there=there)["deployments"][0]["autoscaling_config"]
    assert scaling["max_replicas"] == 10
    assert "initial_replicas" not in scaling


def test_two_clusters_of_one_machine_have_ports_of_their_own():
    variables = serve_options(replica_ports=range(20000, 20200))["controller_options"]["runtime_env"][
        "env_vars"
    ]
    ports = {key.removeprefix("RAY_SERVE_DIRECT_INGRESS_"): value for key, value in variables.items()}
    assert (ports["MIN_GRPC_PORT"], ports["MAX_GRPC_PORT"]) == ("20000", "20099")
    assert (ports["MIN_HTTP_PORT"], ports["MAX_HTTP_PORT"]) == ("20100", "20199")
    block = free_block(100)
    assert len(block) == 100
    with socket.create_server(("127.0.0.1", block[50])):
        assert not any(set(free_block(100)) & {block[50]} for _ in range(50))


def test_a_node_of_an_older_modelkit_reads_what_a_newer_one_has_written():
    args = application(Record(spec_of()))["args"]
    content = json.loads(args["spec"])
    content["spec"]["newer"] = 1
    got, _ = read_replica_args({**args, "spec": json.dumps(content)})
    assert got.name == "chat"
