"""Deployments on a real Kubernetes: calls through updates, what fails leaves the old version, nothing is left at the end."""

import itertools
import json
import threading
import time
import urllib.request
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
import yaml

from modelkit import Client, ModelkitError
from modelkit.computes import add_compute
from modelkit.computes.kubernetes_api import locate
from modelkit.config import load_config
from modelkit.deploy import Delivery, DeploymentSpec, Origin, Record, open_deployer
from modelkit.deploy.kubernetes import pods
from modelkit.deploy.rollout import FailedRolloutError, make_plan, roll_back, roll_out, scale, start_canary
from modelkit.deploy.source import Wishes, read_target
from modelkit.errors import DeployError, UnknownDeploymentError, UsageError
from modelkit.progress import NO_PROGRESS

# The cluster is on networks of this machine alone; see scripts/kubernetes/cluster.sh.
pytestmark = [pytest.mark.timeout(300), pytest.mark.enable_socket]

DELIVERY = Delivery(progress=NO_PROGRESS)
READY_S = 120.0
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def deployer(cluster):
    with closing(open_deployer(cluster.compute())) as deployer:
        yield deployer


@pytest.fixture
def name(cluster):
    """The name of a deployment that is ended after the test, at once."""
    name = f"worker-{next(_numbers)}"
    yield name
    remove(cluster, name)


@pytest.fixture(scope="module")
def single(cluster, deployer, make_spec):
    """A deployment of one replica, for tests that leave it as it was."""
    yield standing(deployer, make_spec("single"))
    remove(cluster, "single")


@pytest.fixture(scope="module")
def pair(cluster, deployer, make_spec):
    """A deployment of two replicas, for tests that leave it as it was."""
    yield standing(deployer, make_spec("pair", "v1", "deployment.min_replicas=2"))
    remove(cluster, "pair")


@pytest.fixture
def quick_end(monkeypatch):
    """Replicas that end at once: the test waits for that, and nobody calls them."""
    monkeypatch.setattr(pods, "PRE_STOP_S", 1)


def standing(deployer, spec):
    put(deployer, spec)
    return spec.name


def remove(cluster, name):
    selector = ("--selector", f"app.kubernetes.io/instance={name}")
    cluster.kubectl("delete", "deployments,services,pdb,hpa", *selector, "--wait=false")
    cluster.kubectl("delete", "pods", *selector, "--grace-period=0", "--force", "--wait=false")


@pytest.fixture(scope="module")
def make_spec(worker_folder, worker_image):
    """Make specifications that need no delivery: the image is on the node."""

    def make(name, version="v1", *overrides, artifact=None, **fields):
        described = (f"model.description={version}", *overrides)
        config = load_config(worker_folder, overrides=described).model_dump(mode="json")
        return DeploymentSpec(
            name=name,
            model_id="worker",
            version=version,
            digest=f"sha256:{version.encode().hex():0>64}",
            config=config,
            overrides=described,
            artifact=artifact or worker_image,
            **fields,
        )

    return make


class _Here:
    """A deployer that has delivered already."""

    def __init__(self, deployer):
        self._deployer = deployer

    def __getattr__(self, name):
        return getattr(self._deployer, name)

    def deliver(self, spec, origin, delivery):
        return spec.artifact


def put(deployer, spec):
    """Roll a version out as `modelkit serve` does."""
    here = _Here(deployer)
    return roll_out(here, make_plan(here, spec), Origin(), DELIVERY, lambda _: None, timeout_s=READY_S)


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.2)
    return found


@contextmanager
def client_of(cluster, name):
    """A client of the service's own address, behind which any replica answers."""
    host = cluster.get("service", name)["spec"]["clusterIP"]
    with Client(f"{host}:50051") as client:
        yield client


@pytest.fixture
def computes(cluster, tmp_path, monkeypatch):
    """The computes of this user: the cluster."""
    monkeypatch.setenv("MODELKIT_CONFIG_DIR", str(tmp_path / "config"))
    add_compute(cluster.compute())


class Load:
    """Calls from several threads until the end of a block; what became of each is counted."""

    def __init__(self, url, num_threads=2):
        self._stop = threading.Event()
        self._client = Client(url)
        self._threads = [threading.Thread(target=self._call) for _ in range(num_threads)]
        self._lock = threading.Lock()
        self.num_ok = 0
        self.lost = []

    def _call(self):
        while not self._stop.is_set():
            try:
                assert self._client.predict(method="echo", text="a") == "a"
            except ModelkitError as error:
                with self._lock:
                    self.lost.append(error)
            else:
                with self._lock:
                    self.num_ok += 1
            time.sleep(0.002)  # what is to be updated needs the processor too

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()


@pytest.mark.usefixtures("quick_end")
def test_a_folder_is_built_uploaded_pulled_and_answers(cluster, cluster_registry, worker_folder, name):
    compute = cluster.compute(registry=f"{cluster_registry.host}/team")
    with closing(open_deployer(compute)) as deployer:
        target = read_target(str(worker_folder), Wishes(name=name))
        plan = make_plan(deployer, target.spec)
        deployer.refuse(target.spec, target.origin)
        seen = []
        status = roll_out(deployer, plan, target.origin, DELIVERY, seen.append, timeout_s=READY_S)
        assert (status.state, status.num_ready) == ("running", 1)
        assert "@sha256:" in status.record.spec.artifact
        assert {each.record.spec.version for each in seen} == {target.spec.version}
        endpoint = locate(compute, name)
        (route,) = endpoint.routes
        with Client(route.targets[0]) as client:
            assert client.predict(method="greet", name="Ada") == "Hello, Ada!"
        with urllib.request.urlopen(f"{endpoint.http_url}/v1/methods", timeout=30) as answer:
            assert "greet" in answer.read().decode()
        # Once more the same: nothing is sent, nothing changes.
        again = deployer.deliver(target.spec, target.origin, DELIVERY)
        assert again == status.record.spec.artifact
        deployer.delete(name)
        assert name not in [each.name for each in deployer.statuses()]
        kinds = "deployments,services,poddisruptionbudgets,horizontalpodautoscalers"
        assert not cluster.get(kinds, "--selector", f"app.kubernetes.io/instance={name}")["items"]


@pytest.mark.usefixtures("computes")
def test_an_update_and_the_way_back_lose_no_call(deployer, make_spec, pair):
    url = f"modelkit://cluster/{pair}"
    with Client(url) as client:
        assert client.describe().description == "v1"
    with Load(url) as load:
        put(deployer, make_spec(pair, "v2", "deployment.min_replicas=2"))
        with Client(url) as client:
            until(lambda: client.describe().description == "v2")
        before = load.num_ok
        status = roll_back(deployer, deployer.status(pair).record, None, lambda _: None, timeout_s=READY_S)
        assert status.record.spec.version == "v1"
        until(lambda: all(replica.version == "v1" for replica in deployer.status(pair).replicas))
    assert load.lost == []
    assert load.num_ok > before > 0
    assert [spec.version for spec in deployer.status(pair).record.history] == ["v2"]


@pytest.mark.usefixtures("computes")
def test_a_bad_version_leaves_the_old_one_serving(deployer, make_spec, single):
    (replica,) = deployer.status(single).replicas
    spec = make_spec(single, "v2")
    bad = {
        "must be a whole number": replace(spec, overrides=("server.max_queue=many",)),  # it ends as it starts
        "ImagePullBackOff": replace(spec, artifact="localhost:1/none:v2"),
    }
    with Load(f"modelkit://cluster/{single}", num_threads=1) as load:
        for reason, version in bad.items():
            with pytest.raises(FailedRolloutError, match=reason) as failure:
                put(deployer, version)
            assert failure.value.serving == "v1 goes on serving"
    assert load.lost == []
    status = deployer.status(single)
    assert (status.state, status.record.spec.version) == ("running", "v1")
    assert [each.name for each in status.replicas if each.state == "ready"] == [replica.name]


def test_what_no_node_has_is_said_in_the_cluster_s_words(deployer, make_spec, name):
    spec = make_spec(name, "v1", "compute.num_accelerators=1")
    deployer.apply(Record(spec))
    status = until(lambda: (found := deployer.status(name)).reason and found)
    assert status.state == "starting"
    reason = until(lambda: next((each.reason for each in deployer.status(name).replicas), ""))
    assert reason.startswith("Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu")


@pytest.mark.usefixtures("computes")
def test_a_killed_replica_is_replaced_and_the_other_one_answers(cluster, deployer, pair):
    victim = next(each.name for each in deployer.status(pair).replicas if each.state == "ready")
    cluster.docker("kill", "--signal", "KILL", cluster.container_of(victim))
    with Client(f"modelkit://cluster/{pair}") as client:
        until(lambda: _answers(client))

    def restarted():
        status = deployer.status(pair)
        replica = next(each for each in status.replicas if each.name == victim)
        return replica.num_restarts == 1 and status.num_ready == 2

    until(restarted)


def _answers(client):
    try:
        return client.predict(method="echo", text="a") == "a"
    except ModelkitError:
        return False


def test_scaling_restarts_nothing_and_prunes_and_a_stream_survives_it(cluster, deployer, single):
    (first,) = deployer.status(single).replicas
    status = scale(deployer, single, 3, 3, lambda _: None, timeout_s=READY_S)
    assert (status.num_ready, status.min_replicas, status.max_replicas) == (3, 3, 3)
    assert first.name in {replica.name for replica in status.replicas}
    assert cluster.get("poddisruptionbudget", single)["spec"]["maxUnavailable"] == 1
    targets = locate(deployer.compute, name).routes[0].targets
    assert len(targets) == 3
    # An autoscaler gets its bounds and keeps the replicas that run, whatever is applied anew.
    deployer.scale(single, 1, 4)
    autoscaler = cluster.get("hpa", single)
    assert (autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]) == (1, 4)
    deployer.apply(deployer.status(single).record)
    assert cluster.get("deployment", single)["spec"]["replicas"] == 3
    streams = []

    def stream(target):
        with Client(target) as client:
            streams.append(list(client.generate(method="count", number=60, pause_s=0.1)))

    threads = [threading.Thread(target=stream, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    deployer.scale(single, 1, 1)
    until(lambda: any(replica.state == "draining" for replica in deployer.status(single).replicas))
    for thread in threads:
        thread.join()
    assert streams == [[str(number) for number in range(60)]] * 3
    until(lambda: len(deployer.status(single).replicas) == 1)
    assert not cluster.get("pdb,hpa", "--selector", f"app.kubernetes.io/instance={single}")["items"]


def test_bounds_that_the_cluster_refuses_change_nothing(cluster, deployer, single):
    before = deployer.status(single).record
    with pytest.raises(DeployError, match="minReplicas"):
        deployer.scale(single, 0, 3)
    assert deployer.status(single).record == before
    assert cluster.get("deployment", single)["spec"]["replicas"] == 1


def test_logs_are_of_every_replica_and_follow_new_ones(deployer, single):
    lines = list(deployer.logs(single, num_lines=50))
    assert {line.replica for line in lines} == {each.name for each in deployer.status(single).replicas}
    assert any("serving worker" in line.text for line in lines)
    followed = deployer.logs(single, num_lines=0, follow=True)
    threading.Timer(1.0, deployer.scale, (single, 2, 2)).start()
    line = next(line for line in followed if "serving worker" in line.text)
    followed.close()
    assert line.replica not in {each.replica for each in lines}
    with pytest.raises(DeployError, match="has no replica 'other'"):
        list(deployer.logs(single, replica="other"))
    scale(deployer, single, 1, 1, lambda _: None, timeout_s=READY_S)


def test_a_record_of_a_newer_modelkit_is_listed_and_not_overwritten(cluster, deployer, single):
    record = deployer.status(single).record
    cluster.kubectl("annotate", "deployment", single, "--overwrite", 'modelkit/record={"spec": 2}')
    try:
        status = next(each for each in deployer.statuses() if each.name == single)
        assert (status.state, status.num_ready, status.record.is_readable) == ("running", 1, False)
        for change in (lambda: deployer.scale(single, 2, 2), lambda: deployer.apply(status.record)):
            with pytest.raises(DeployError, match="newer modelkit"):
                change()
        assert cluster.get("deployment", single)["spec"]["replicas"] == 1
    finally:
        deployer.apply(record)
    assert deployer.status(single).record == record


@pytest.mark.usefixtures("quick_end")
def test_a_second_deployment_disturbs_nobody_and_what_its_stop_has_left_is_ended(
    cluster, deployer, make_spec, name, single
):
    put(deployer, make_spec(name, "v7"))
    with client_of(cluster, single) as one, client_of(cluster, name) as two:
        assert (one.describe().description, two.describe().description) == ("v1", "v7")
        assert {single, name} <= {status.name for status in deployer.statuses()}
        # As a stop does that is killed in the middle.
        cluster.kubectl("delete", "deployment", name, "--wait=false")
        assert deployer.status(name).state == "stopping"
        assert name in {status.name for status in deployer.statuses() if status.state == "stopping"}
        deployer.delete(name)
        assert one.predict(method="greet", name="Ada") == "Hello, Ada!"
    with pytest.raises(UnknownDeploymentError, match=name):
        deployer.status(name)
    with pytest.raises(UnknownDeploymentError, match=name):
        deployer.delete(name)
    assert not cluster.get("services", "--selector", f"app.kubernetes.io/instance={name}")["items"]


def test_secrets_come_from_the_cluster_by_name(cluster, deployer, make_spec, name):
    secrets = "secrets=[{env_var: WORKER_TOKEN}]"
    spec = make_spec(name, "v1", secrets, api_key_env="WORKER_KEY")
    with pytest.raises(UsageError, match="no Secret 'worker-token'") as missing:
        deployer.apply(Record(spec))
    assert "kubectl --namespace default create secret generic worker-token" in missing.value.cure
    cluster.kubectl("create", "secret", "generic", "worker-token", "--from-literal=WORKER_TOKEN=s3cret")
    cluster.kubectl("create", "secret", "generic", "worker-key", "--from-literal=WORKER_KEY=opensesame")
    try:
        put(deployer, spec)
        target = locate(deployer.compute, name).routes[0].targets[0]
        with Client(target, api_key="opensesame", allow_plaintext_api_key=True) as client:
            assert client.predict(method="variable", name="WORKER_TOKEN") == "s3cret"
        with Client(target) as client, pytest.raises(ModelkitError, match="API key"):
            client.predict(method="variable", name="WORKER_TOKEN")
        everything = cluster.get(
            "deployments,services,pods", "--selector", f"app.kubernetes.io/instance={name}"
        )
        assert "s3cret" not in json.dumps(everything)
    finally:
        cluster.kubectl("delete", "secret", "worker-token", "worker-key")


def test_rendered_manifests_are_what_kubectl_takes(cluster, deployer, make_spec, name):
    text = deployer.render(Record(make_spec(name, "v1", "deployment.min_replicas=2")))
    kinds = [item["kind"] for item in yaml.safe_load_all(text)]
    assert kinds == ["Service", "Service", "Deployment", "PodDisruptionBudget"]
    # The cluster is older than policy/v1, which every supported one has.
    cluster.kubectl("apply", "--filename", "-", text=text.replace("policy/v1\n", "policy/v1beta1\n"))
    status = until(lambda: (found := deployer.status(name)).state == "running" and found, READY_S)
    assert status.num_ready == 2
    # What kubectl has made is a deployment as any other.
    assert scale(deployer, name, 1, 1, lambda _: None, timeout_s=READY_S).max_replicas == 1
    assert not cluster.get("pdb", "--selector", f"app.kubernetes.io/instance={name}")["items"]


def test_a_node_port_is_where_callers_outside_go(cluster, deployer, single):
    cluster.kubectl("patch", "service", single, "--patch", '{"spec": {"type": "NodePort"}}')
    deployer.apply(deployer.status(single).record)  # which does not take that back
    endpoint = locate(deployer.compute, single)
    assert endpoint.routes[0].targets[0].startswith("172.31.240.2:3")
    with Client(endpoint.routes[0].targets[0]) as client:
        until(lambda: _answers(client))  # once the node has heard of the port


def test_check_tells_what_the_cluster_is(cluster, deployer):
    report = deployer.check()
    assert report.problems == ()
    assert report.versions[0][0] == "Kubernetes"
    assert (report.num_nodes, report.gpus) == (1, ())
    assert 0 < report.cpu_free <= report.cpu_total
    with closing(open_deployer(cluster.compute(flavor="keda"))) as other:
        assert "does not know HTTPScaledObject" in other.check().problems[0][0]


def test_a_canary_needs_a_gateway(deployer, make_spec, single):
    with pytest.raises(UsageError, match="shares calls out") as refused:
        deployer.set_canary(single, make_spec(single, "v2"), 10)
    assert "Gateway" in refused.value.cure


DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {plural}.{group}
  annotations: {{api-approved.kubernetes.io: "unapproved, a stand-in for tests"}}
spec:
  group: {group}
  scope: Namespaced
  names: {{kind: {kind}, plural: {plural}}}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public}
"""


@contextmanager
def defined(cluster, group, kinds):
    """Kinds of objects that nobody acts on, while the block lasts."""
    for kind, plural in kinds.items():
        text = DEFINITION.format(group=group, kind=kind, plural=plural)
        cluster.kubectl("apply", "--filename", "-", text=text)
    names = [f"crd/{plural}.{group}" for plural in kinds.values()]
    try:
        cluster.kubectl("wait", "--for=condition=Established", *names)

        def served():
            text = cluster.kubectl("api-resources", "--output=name")
            return all(f"{plural}.{group}" in text for plural in kinds.values())

        until(served)
        yield
    finally:
        cluster.kubectl("delete", *names)


@pytest.fixture
def gateway(cluster):
    """The objects of the Gateway API."""
    kinds = {"Gateway": "gateways", "HTTPRoute": "httproutes"}
    with defined(cluster, "gateway.networking.k8s.io", kinds):
        cluster.kubectl("apply", "--filename", "-", text=GATEWAY)
        yield


@pytest.mark.usefixtures("quick_end")
def test_a_canary_has_replicas_of_its_own_and_a_share_of_the_route(cluster, gateway, make_spec, name):
    def shares():
        rules = cluster.get("httproute", name)["spec"]["rules"]
        return {tuple((ref["name"], ref["weight"]) for ref in rule["backendRefs"]) for rule in rules}

    with closing(open_deployer(cluster.compute(endpoint="https://{name}.models.test"))) as deployer:
        put(deployer, make_spec(name))
        assert cluster.get("httproute", name)["spec"]["hostnames"] == [f"{name}.models.test"]
        assert shares() == {((name, 100),)}
        seen = []

        def on_status(status):
            ready = bool(status.canary_replicas) and all(e.state == "ready" for e in status.canary_replicas)
            seen.append((ready, *shares()))

        status = start_canary(deployer, make_spec(name, "v2"), 10, on_status, timeout_s=READY_S)
        assert all(shares == ((name, 100),) for ready, shares in seen if not ready)
        assert shares() == {((name, 90), (f"{name}-canary", 10))}
        assert (status.record.spec.version, status.canary.version, status.canary_percent) == ("v1", "v2", 10)
        assert (status.state, status.num_ready, len(status.canary_replicas)) == ("running", 1, 1)
        # More replicas leave the canary alone, and it is none of them.
        status = scale(deployer, name, 2, 2, lambda _: None, timeout_s=READY_S)
        assert (status.num_ready, len(status.canary_replicas)) == (2, 1)
        assert any(line.replica == status.canary_replicas[0].name for line in deployer.logs(name))
        assert shares() == {((name, 90), (f"{name}-canary", 10))}
        deployer.set_canary(name, None, 0)
        assert shares() == {((name, 100),)}
        assert deployer.status(name).canary is None
        names = {item["metadata"]["name"] for item in cluster.get("deployments,services")["items"]}
        assert f"{name}-canary" not in names
        deployer.delete(name)
        assert not cluster.get("httproutes")["items"]


def test_serverless_needs_a_flavor_that_the_cluster_has(cluster, deployer, make_spec, name):
    spec = make_spec(name, "v1", "deployment.mode=serverless", "deployment.min_replicas=0")
    with pytest.raises(UsageError, match="keda, knative, kuberay"):
        deployer.refuse(spec, Origin(reference="registry.example.com/worker@sha256:" + "0" * 64))
    with (
        closing(open_deployer(cluster.compute(flavor="keda"))) as other,
        pytest.raises(DeployError, match="HTTPScaledObject"),
    ):
        other.apply(Record(spec))


def test_a_deployment_is_not_turned_into_another_kind_of_object(cluster, deployer, make_spec, single):
    spec = make_spec(single, "v2", "deployment.mode=serverless", "deployment.min_replicas=0")
    with (
        defined(cluster, "ray.io", {"RayService": "rayservices"}),
        closing(open_deployer(cluster.compute(flavor="kuberay"))) as other,
    ):
        for change in (
            lambda: other.apply(Record(spec)),
            lambda: other.deliver(spec, Origin(reference=spec.artifact), DELIVERY),
        ):
            with pytest.raises(UsageError, match="runs as a Deployment") as refused:
                change()
            assert f"modelkit stop {single}" in refused.value.cure
        assert not cluster.get("rayservices")["items"]
    assert deployer.status(single).state == "running"


def test_rights_that_are_missing_are_named(cluster):
    cluster.kubectl("create", "serviceaccount", "guest")
    secret = until(lambda: cluster.get("serviceaccount", "guest").get("secrets"))[0]["name"]
    token = cluster.kubectl("get", "secret", secret, "--output", "jsonpath={.data.token}")
    import base64

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUEST_TOKEN", base64.b64decode(token).decode())
        with closing(open_deployer(cluster.compute(token_env="GUEST_TOKEN"))) as guest:
            problems = [problem for problem, _ in guest.check().problems]
            assert "you may not get, list, create, patch, delete deployments in namespace default" in problems
            with pytest.raises(DeployError, match="forbidden"):
                guest.statuses()
