"""Deployments on a real Ray cluster: a head, two workers with fake GPUs, real replicas, real calls."""

import asyncio
import itertools
import os
import signal
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import pytest

from modelkit import AsyncClient, Client
from modelkit.computes import add_compute
from modelkit.computes.ray_api import RayApi, locate
from modelkit.deploy.base import Delivery, Origin
from modelkit.deploy.ray_serve.deployer import RayServeDeployer
from modelkit.deploy.ray_serve.deployer import _configs as configs_of
from modelkit.deploy.ray_serve.manifest import without_application
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.deploy.rollout import FailedRolloutError, make_plan, roll_out, start_canary
from modelkit.errors import (
    CallError,
    DeadlineExceededError,
    DeployError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
    UnknownDeploymentError,
    UsageError,
)
from modelkit.progress import NO_PROGRESS
from modelkit.versions.folder import read_folder
from paths import ROOT
from ray_cluster import POLL_S, ray_cluster  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.timeout(600),
    # Ray's own, in the process that deploys too: its extra brings libraries that warn.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

WAIT_S = 240.0
PROBE = ROOT / "tests" / "data" / "models" / "probe"
SERVERLESS = ("deployment.mode=serverless", "deployment.scale_to_zero_after=2s")


def spec_of(name, folder=PROBE, version="v1", overrides=(), **fields):
    read = read_folder(folder, overrides=overrides)
    return DeploymentSpec(
        name=name,
        model_id=read.content.model_id,
        version=version,
        digest=read.content.package.digest,
        config=dict(read.content.config),
        overrides=tuple(overrides),
        **fields,
    )


def wait_until(ask, is_good, timeout_s=WAIT_S):
    deadline = time.monotonic() + timeout_s
    while True:
        answer = ask()
        if is_good(answer):
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(POLL_S)


class Bench:
    """What the tests do to the cluster, by the names of the verbs."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.deployer = RayServeDeployer(cluster.compute)
        self.names = set()

    def deliver(self, spec, folder=PROBE):
        artifact = self.deployer.deliver(spec, Origin(folder=folder), Delivery(progress=NO_PROGRESS))
        return spec.delivered(artifact)

    def start(self, name, folder=PROBE, **fields):
        """Deploy anew and wait until it answers."""
        self.names.add(name)
        spec = self.deliver(spec_of(name, folder, **fields), folder)
        self.deployer.apply(Record(spec))
        return self.ready(spec)

    def update(self, record, folder, **fields):
        """Deploy another version over it, without waiting; return its record."""
        spec = self.deliver(spec_of(record.spec.name, folder, **fields), folder)
        record = record.followed_by(spec)
        self.deployer.apply(record)
        return record

    def ready(self, spec):
        def status():
            found = self.deployer.status(spec.name)
            assert found.state != "failed", found
            return found

        return wait_until(status, lambda each: each.record.spec == spec and each.state in {"running", "idle"})

    def idle(self, name):
        return wait_until(lambda: self.deployer.status(name), lambda status: status.state == "idle")

    def endpoint(self, name):
        return locate(self.cluster.compute, name)

    def client(self, name, kind=Client, target=None, **options):
        route = self.endpoint(name).routes[0]
        return kind(target or route.targets[0], headers=dict(route.metadata), **options)

    def ways(self, name):
        """The addresses of a deployment: that of a replica, and that of the proxy."""
        route = self.endpoint(name).routes[0]
        assert route.waiting
        return {"direct": route.targets[0], "proxy": route.waiting[0]}

    def end(self, *names):
        for name in names or list(self.names):
            with suppress(UnknownDeploymentError):
                self.deployer.delete(name)
            self.names.discard(name)

    def drop(self):
        """Let all end, and do not wait for it: the cluster has room for those that drain."""
        instance = self.deployer._api.instance()
        dropped = {*self.names, *(f"{name}.canary" for name in self.names)}
        self.deployer._api.put_applications(instance, without_application(configs_of(instance), dropped))
        self.names.clear()


@pytest.fixture(scope="module")
def bench(ray_cluster):  # noqa: F811
    bench = Bench(ray_cluster)
    yield bench
    bench.deployer.close()


@pytest.fixture
def fresh(bench):
    """For deployments of a test of its own, which are ended with it."""
    yield bench
    bench.drop()


@pytest.fixture(scope="module")
def probe(bench):
    """One deployment that the tests share which do it no harm."""
    bench.start("probe")
    bench.names.discard("probe")
    return "probe"


@pytest.fixture(params=["direct", "proxy"])
def way(request, bench, probe):
    return bench.ways(probe)[request.param]


@pytest.fixture
def client(bench, probe, way):
    with bench.client(probe, target=way, timeout_s=60) as client:
        yield client


class Load:
    """Callers that never stop, each looking up where the replicas are as often as the endpoint says."""

    def __init__(self, bench, name, num_callers=4, method="version"):
        self.bench, self.name, self.method = bench, name, method
        self.answers, self.failures = [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(num_callers)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        endpoint, looked_up, clients, turn = None, 0.0, {}, itertools.count()
        while not self._stop.is_set():
            if endpoint is None or time.monotonic() - looked_up > endpoint.refresh_s:
                with suppress(DeployError):
                    endpoint, looked_up = self.bench.endpoint(self.name), time.monotonic()
            route = endpoint.routes[0]
            target = route.targets[next(turn) % len(route.targets)]
            if target not in clients:
                clients[target] = Client(target, headers=dict(route.metadata), timeout_s=120)
            try:
                self.answers.append(clients[target].predict(method=self.method))
            except CallError as error:
                self.failures.append(error)
            time.sleep(0.01)
        for client in clients.values():
            client.close()

    def wait_for(self, num_more, timeout_s=WAIT_S):
        """Wait until so many more calls have been answered."""
        wanted = len(self.answers) + num_more
        wait_until(lambda: len(self.answers), lambda num: num >= wanted, timeout_s)


def written(folder, text):
    """A probe of another version."""
    folder.mkdir()
    for source in PROBE.iterdir():
        if source.is_file():
            content = source.read_text()
            (folder / source.name).write_text(content.replace('VERSION = "one"', f'VERSION = "{text}"'))
    return folder


# --------------------------------------------------------------------------------------------------- calls of each kind


def test_all_four_rpcs_answer(client):
    assert client.describe().model_id == "probe"
    assert client.predict(method="version") == "one"
    assert list(client.generate(prompt="n", count=3)) == ["n0 ", "n1 ", "n2 "]
    assert list(client.generate(prompt="n", count=3, method="generate_slowly", pause_s=0)) == [
        "n0 ",
        "n1 ",
        "n2 ",
    ]
    assert list(client.stream(iter(["a", "b"]))) == ["A", "B"]
    assert client.health() == client.health("liveness") == "SERVING"
    client.wait_ready(timeout_s=30)


def test_streams_arrive_item_by_item(client):
    stream = client.generate(prompt="", count=50, pause_s=0.2)
    started = time.monotonic()
    assert next(stream) == "0 "
    assert time.monotonic() - started < 8  # all of them take 10 s
    stream.cancel()


def test_a_bidirectional_call_is_a_conversation(client):
    said = []

    def lines():
        for line in ("a", "b", "c"):
            said.append(line)
            yield line

    answers = client.stream(lines())
    assert next(answers) == "A"
    assert list(answers) == ["B", "C"]


def test_the_models_own_errors_keep_code_cure_and_message(client):
    with pytest.raises(NotFoundError, match="there is no such thing") as caught:
        client.predict(how="meant", method="fail")
    assert caught.value.cure == "ask for another"
    with pytest.raises(InternalError, match="RuntimeError") as unmeant:
        client.predict(how="not", method="fail")
    assert "Traceback" not in str(unmeant.value)
    with pytest.raises(InvalidArgumentError) as invalid:
        list(client.generate(prompt=1))
    assert [each.field for each in invalid.value.violations] == ["prompt"]
    with pytest.raises(InvalidArgumentError):
        list(client.stream(iter([1])))


def test_a_deadline_is_kept(bench, probe, way):
    with pytest.raises(DeadlineExceededError), bench.client(probe, target=way) as client:
        client.predict(method="sleep", seconds=60.0, timeout_s=1.0)


def test_the_model_knows_the_deadline_of_a_client_that_finds_it_by_its_name(bench, probe, monkeypatch):
    """Ray hides a call's deadline from the replica: the client has to say it."""
    add_compute(bench.cluster.compute, replace=True)
    with Client(f"modelkit://{bench.cluster.compute.name}/{probe}", timeout_s=100) as client:
        assert 50 < client.predict(method="deadline") <= 100


def test_a_malformed_message_is_the_callers_fault(probe, way):
    with grpc.insecure_channel(way) as channel:
        call = channel.unary_unary("/modelkit.inference.v1.InferenceService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff", metadata=(("application", probe),), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_cancelling_ends_the_generator_async_or_not(bench, probe, way, tmp_path):
    notes = bench.cluster.folder / "notes"
    for prompt, method, note in (
        ("c" + way[-5:], "generate", "generate-{}"),
        ("s" + way[-5:], "generate_slowly", "slowly-{}-part"),
    ):
        with bench.client(probe, target=way) as client:
            stream = client.generate(prompt=prompt, method=method, count=1000, pause_s=0.05)
            next(stream)
            stream.cancel()
        wait_until((notes / note.format(prompt)).exists, bool, timeout_s=30)


async def test_many_callers_at_once(bench, probe, way):
    async with bench.client(probe, kind=AsyncClient, target=way, timeout_s=120) as client:
        answers = await asyncio.gather(*(client.predict(method="sleep", seconds=0.2) for _ in range(50)))
    assert set(answers) == {"one"}


# ---------------------------------------------------------------------------------------------------------------- HTTP


def http_url(bench, name):
    # The node says an address of the network; the tests may use loopback only.
    port = bench.cluster.http_port
    return f"http://127.0.0.1:{port}/{name}"


def test_http_goes_through_the_same_replica(bench, probe):
    url = http_url(bench, probe)
    assert bench.endpoint(probe).http_url.endswith(f":{bench.cluster.http_port}/{probe}")
    assert httpx.get(f"{url}/ready").json() == {"ready": True}
    answer = httpx.post(f"{url}/v1/methods/fail", json={"how": "meant"})
    assert answer.status_code == 404
    assert "no such thing" in answer.text
    assert "modelkit serve" in httpx.get(f"{url}/").text
    events = {"Accept": "text/event-stream"}
    with httpx.stream("POST", f"{url}/v1/methods/generate", json={"count": 3}, headers=events) as streamed:
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert "2 " in "".join(streamed.iter_text())


def test_pages_of_other_sites_may_not_call(bench, probe):
    headers = {"Origin": "https://elsewhere.example"}
    answer = httpx.post(f"{http_url(bench, probe)}/v1/methods/version", json={}, headers=headers)
    assert answer.status_code == 403


# ------------------------------------------------------------------------------------------------- secrets, keys, errors


def test_secrets_come_from_the_node_and_never_through_ray(bench, client, monkeypatch):
    assert client.predict(method="secret") == "Hello from the node"
    assert "Hello from the node" not in str(bench.deployer._api.instance())


def test_a_call_needs_the_key_of_the_deployment(fresh, bench):
    bench.start("locked", api_key_env="API_KEY")
    for target in bench.ways("locked").values():
        with bench.client("locked", target=target, timeout_s=60) as client:
            assert client.health() == "SERVING"
            for call in (
                lambda: client.predict(method="version"),
                lambda: list(client.generate()),
                client.describe,
            ):
                with pytest.raises(UnauthenticatedError):
                    call()
        with bench.client(
            "locked", target=target, api_key="key-of-the-node", allow_plaintext_api_key=True
        ) as client:
            assert client.predict(method="version") == "one"
    assert httpx.post(f"{http_url(bench, 'locked')}/v1/methods/version", json={}).status_code == 401


def test_a_cluster_that_was_not_asked_says_why(bench, monkeypatch):
    def ask(**changes):
        with closing(RayApi(replace(bench.cluster.compute, **changes))) as api:
            api.version()

    monkeypatch.setenv("WRONG", "x")
    with pytest.raises(DeployError, match="does not take the token"):
        ask(token_env="WRONG")
    with pytest.raises(DeployError, match="asks for a token") as caught:
        ask(token_env=None)
    assert "--token-env" in caught.value.cure
    with pytest.raises(DeployError, match="cannot be reached"):
        ask(address="http://127.0.0.1:9")
    with pytest.raises(UnknownDeploymentError):
        bench.endpoint("nothing")


def test_a_check_finds_nodes_gpus_and_versions(bench):
    report = bench.deployer.check()
    assert report.problems == ()
    assert dict(report.versions)["Ray"].startswith("2.")
    assert report.num_nodes == 3
    assert {(gpu.kind, gpu.num_total) for gpu in report.gpus} == {("A100", 2), ("H100", 2)}
    assert report.cpu_total == 17


def test_set_up_again_changes_nothing(bench, probe):
    lines = []
    bench.deployer.setup(lines.append)
    assert lines == ["Ray Serve runs, and knows modelkit's contract"]
    assert bench.deployer.status(probe).state == "running"


def test_logs_are_those_of_the_replica(bench, probe):
    with bench.client(probe) as client:
        list(client.generate(method="generate_slowly", count=2, pause_s=0))
    lines = wait_until(
        lambda: [line.text for line in bench.deployer.logs(probe, num_lines=10_000)],
        lambda lines: "at 1" in lines,
        timeout_s=30,
    )
    assert any("probe is ready" in line for line in lines)


def test_following_a_log_tells_what_comes(bench, probe):
    seen = []

    def follow():
        for line in bench.deployer.logs(probe, num_lines=0, follow=True):
            seen.append(line.text)
            if line.text == "at 3":
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()

    def call():
        with bench.client(probe) as client:
            list(client.generate(method="generate_slowly", count=4, pause_s=0))
        return thread.is_alive()

    wait_until(call, lambda alive: not alive, timeout_s=60)


# --------------------------------------------------------------------------------------------------- scaling, serverless


def test_a_deployment_at_zero_holds_what_comes_and_answers_all(fresh, bench):
    bench.start("zero", overrides=(*SERVERLESS, "deployment.max_replicas=2"))
    bench.idle("zero")
    route = bench.endpoint("zero").routes[0]
    assert route.waiting == ()
    answers, failures = [], []

    def call(number):
        try:
            with bench.client("zero", target=route.targets[0], timeout_s=WAIT_S) as client:
                if number % 2:
                    answers.append(client.predict(method="version"))
                else:
                    answers.append("".join(client.generate(prompt="x", count=2)))
        except CallError as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(set(answers)) == ["one", "x0 x1 "]
    assert len(answers) == 20


def test_a_stream_outlasts_the_idle_time_and_scaling_down(fresh, bench):
    status = bench.start("long", overrides=(*SERVERLESS, "deployment.max_replicas=2"))
    with bench.client("long") as client:
        stream = client.generate(prompt="", count=40, pause_s=0.5)
        first = next(stream)
        bench.deployer.scale("long", 2, 2)
        wider = wait_until(lambda: bench.deployer.status("long"), lambda each: each.num_ready == 2)
        assert (wider.num_wanted, wider.record.history) == (2, ())
        bench.deployer.scale("long", 0, 3)
        # Autoscaling goes on from what runs; left alone, Ray would begin with one again.
        kept = wait_until(lambda: bench.deployer.status("long"), lambda each: each.max_replicas == 3)
        assert (kept.num_wanted, kept.num_ready) == (2, 2)
        bench.deployer.scale("long", 0, 1)
        assert [first, *stream][-1] == "39 "
    after = bench.idle("long")
    assert after.record.spec.digest == status.record.spec.digest
    assert (after.min_replicas, after.max_replicas) == (0, 1)


def test_gpus_are_taken_from_nodes_of_the_type(fresh, bench):
    bench.start(
        "gpu",
        overrides=(
            "compute.cpu_requests=1",
            "compute.num_accelerators=2",
            'compute.accelerator_type=["NVIDIA-H200","NVIDIA-A100-80GB"]',
        ),
    )
    gpus = {gpu.kind: gpu.num_free for gpu in bench.deployer.check().gpus}
    assert gpus == {"A100": 2, "H100": 2}  # Ray counts what is free over all types
    with bench.client(
        "gpu", target=bench.ways("gpu")["proxy"]
    ) as client:  # its port may be that of another node's
        pid = client.predict(method="pid")
    assert pid in bench.cluster.workers[1].pids()


# --------------------------------------------------------------------------------------------------- versions, failures


def test_an_update_and_a_rollback_under_load_lose_no_call(fresh, bench, tmp_path):
    first = bench.start("rolling").record
    with Load(bench, "rolling") as load:
        load.wait_for(20)
        second = bench.update(first, written(tmp_path / "two", "two"), version="v2")
        bench.ready(second.spec)
        wait_until(lambda: load.answers[-1], lambda answer: answer == "two")
        load.wait_for(20)
        back = second.followed_by(second.history[0])
        bench.deployer.apply(back)
        status = bench.ready(back.spec)
        wait_until(lambda: load.answers[-1], lambda answer: answer == "one")
        # The old replicas drain for a while; callers have forgotten them before they end.
        wait_until(lambda: bench.deployer.status("rolling"), lambda each: len(each.replicas) == 1)
        load.wait_for(20)
    assert load.failures == []
    assert [spec.version for spec in status.record.history] == ["v2"]
    assert set(load.answers) == {"one", "two"}


def test_a_version_that_cannot_start_leaves_the_old_one_and_others_serving(fresh, bench, probe, tmp_path):
    record = bench.start("brave").record
    with Load(bench, "brave", num_callers=2) as load, Load(bench, probe, num_callers=1) as others:
        folder = written(tmp_path / "bad", "bad")
        plan = make_plan(bench.deployer, spec_of("brave", folder, version="v2"))
        with pytest.raises(FailedRolloutError, match="this version cannot start") as caught:
            roll_out(
                bench.deployer,
                plan,
                Origin(folder=folder),
                Delivery(progress=NO_PROGRESS),
                lambda _: None,
                timeout_s=WAIT_S,
            )
        assert any("this version cannot start" in line.text for line in caught.value.last_lines)
        assert caught.value.serving == "v1 goes on serving"
        load.wait_for(10)
        others.wait_for(10)
    assert load.failures == others.failures == []
    assert set(load.answers) == {"one"}
    assert bench.deployer.status("brave").record.spec == record.spec


def test_a_killed_replica_is_unavailable_and_comes_back(fresh, bench):
    bench.start("killed", overrides=("deployment.min_replicas=1",))
    for way, target in bench.ways("killed").items():
        with bench.client("killed", target=target, retry=None, timeout_s=120) as client:
            pid = client.predict(method="pid")
            child = client.predict(method="child")
            stream = client.generate(count=1000, pause_s=0.05)
            next(stream)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(UnavailableError) as caught:
                list(stream)
            assert caught.value.executed, way
        wait_until(Path(f"/proc/{child}").exists, lambda exists: not exists)

        def answers():
            with suppress(CallError, DeployError), bench.client("killed", timeout_s=30) as client:
                return client.predict(method="pid")

        wait_until(answers, lambda new, old=pid: new not in {None, old})
        wait_until(lambda: bench.endpoint("killed").routes[0].waiting, bool)


def test_too_many_waiting_calls_are_refused_and_may_come_again(fresh, bench):
    bench.start("busy", overrides=("server.max_concurrency=1", "server.max_queue=1"))
    for target in bench.ways("busy").values():
        failures = []

        def call(target=target, failures=failures):
            try:
                with bench.client("busy", target=target, retry=None, timeout_s=60) as client:
                    client.predict(method="sleep", seconds=2.0)
            except CallError as error:
                failures.append(error)

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures
        assert {type(each) for each in failures} == {OverloadedError}
        assert not any(each.executed for each in failures), [repr(each) for each in failures]


def test_a_canary_gets_its_share_once_it_answers(fresh, bench, tmp_path):
    record = bench.start("shared").record
    spec = bench.deliver(spec_of("shared", written(tmp_path / "two", "two"), version="v2"), tmp_path / "two")
    status = start_canary(bench.deployer, spec, 20, lambda _: None, timeout_s=WAIT_S)
    assert [replica.state for replica in status.canary_replicas] == ["ready"]
    endpoint = wait_until(lambda: bench.endpoint("shared"), lambda endpoint: len(endpoint.routes) == 2)
    assert [route.weight for route in endpoint.routes] == [80, 20]
    told = []
    for route in endpoint.routes:
        with Client(route.targets[0], headers=dict(route.metadata)) as client:
            told.append(client.predict(method="version"))
    assert told == ["one", "two"]
    status = bench.deployer.status("shared")
    assert (status.canary.version, status.canary_percent) == ("v2", 20)
    assert status.record == record
    assert "shared" in {each.name for each in bench.deployer.statuses()}
    bench.deployer.set_canary("shared", None, 0)
    assert len(bench.endpoint("shared").routes) == 1


def test_a_checkpoint_of_this_machine_is_used_here_and_refused_elsewhere(fresh, bench, tmp_path):
    folder = tmp_path / "weights"
    written(folder, "one")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "config.json").write_text("{}")
    with (folder / "config.yaml").open("a") as file:
        file.write("checkpoints:\n  type: local\n  path: checkpoint\n")
    spec = spec_of("weights", folder)
    elsewhere = RayServeDeployer(replace(bench.cluster.compute, address="http://head.example:8265"))
    with pytest.raises(UsageError, match="weights do not travel") as caught:
        elsewhere.refuse(spec, Origin(folder=folder))
    assert "modelkit upload" in caught.value.cure
    elsewhere.close()
    bench.deployer.refuse(spec, Origin(folder=folder))
    bench.start("weights", folder=folder)


def test_others_applications_are_left_alone(fresh, bench, probe):
    foreign = {"name": "foreign", "route_prefix": "/foreign", "import_path": "foreign_app:app"}
    api = bench.deployer._api
    instance = api.instance()
    configs = configs_of(instance)
    api.put_applications(instance, [*configs, foreign])
    try:
        bench.start("beside")
        bench.end("beside")
        assert "beside" not in api.instance()["applications"]
        names = [status.name for status in bench.deployer.statuses()]
        assert probe in names
        assert "foreign" not in names
        with pytest.raises(UnknownDeploymentError):
            bench.deployer.status("foreign")
    finally:
        api.put_applications(instance, configs)


def test_a_lost_node_costs_only_what_ran_there(fresh, bench):
    bench.start("moved")
    with bench.client("moved", retry=None) as client:
        pid = client.predict(method="pid")
        node = next(node for node in bench.cluster.workers if pid in node.pids())
        stream = client.generate(count=1000, pause_s=0.05)
        next(stream)
        node.kill()
        with pytest.raises(UnavailableError):
            list(stream)
    bench.cluster.workers.remove(node)
    bench.cluster.add_worker("H100")

    def answers():
        with suppress(CallError, DeployError), bench.client("moved", timeout_s=30) as client:
            return client.predict(method="version")

    wait_until(answers, lambda answer: answer == "one")
