"""Both clients, by modelkit:// addresses: real servers, and a compute whose answers the tests write down."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

import static_compute
from modelkit import AsyncClient, Client, Model, method
from modelkit.client import RetryPolicy
from modelkit.computes import Compute, add_compute
from modelkit.errors import (
    CallError,
    CancelledCallError,
    DeadlineExceededError,
    DeployError,
    UnauthenticatedError,
    UnavailableError,
    UnknownDeploymentError,
    UsageError,
)
from modelkit.model import current_request
from modelkit.server import ServerOptions
from modelkit.testing import run_server

ADDRESS = "modelkit://lab/chat"
PATIENT = RetryPolicy(max_attempts=8)


class Named(Model):
    def __init__(self, name="a"):
        self.name = name

    @method
    def who(self) -> str:
        return self.name

    @method
    def remaining(self) -> float | None:
        return current_request().time_remaining_s()

    @method
    def count(self, n: int) -> Iterator[str]:
        for _ in range(n):
            time.sleep(0.01)
            yield self.name


@pytest.fixture
def deployments(tmp_path, monkeypatch):
    from importlib import import_module

    kinds = import_module("modelkit.computes.locate")._KINDS
    monkeypatch.setitem(kinds, "ray", "static_compute")
    monkeypatch.setenv("MODELKIT_CONFIG_DIR", str(tmp_path))
    found = static_compute.Deployments(tmp_path / "deployments.json")
    add_compute(Compute(name="lab", kind="ray", address=str(found.path)))
    return found


@contextlib.contextmanager
def serving(name, **options):
    with run_server(Named(name), options=ServerOptions(port=0, drain_timeout_s=5.0, **options)) as server:
        yield server


class SyncCaller:
    """The synchronous client, in the words of the tests."""

    def __init__(self, address=ADDRESS, **settings):
        self.client = Client(address, **settings)

    def who(self, **options):
        return self.client.predict(method="who", **options)

    def count(self, n):
        return list(self.client.generate(method="count", n=n))

    def call(self, method_, **options):
        return self.client.predict(method=method_, **options)

    def wait_ready(self, timeout_s):
        self.client.wait_ready(timeout_s)

    def close(self):
        self.client.close()


class AsyncCaller:
    """The asynchronous one in an event loop of its own."""

    def __init__(self, address=ADDRESS, **settings):
        self.runner = asyncio.Runner()
        self.client = AsyncClient(address, **settings)

    def who(self, **options):
        return self.runner.run(self.client.predict(method="who", **options))

    def count(self, n):
        async def collect():
            return [item async for item in self.client.generate(method="count", n=n)]

        return self.runner.run(collect())

    def call(self, method_, **options):
        return self.runner.run(self.client.predict(method=method_, **options))

    def wait_ready(self, timeout_s):
        self.runner.run(self.client.wait_ready(timeout_s))

    def close(self):
        self.runner.run(self.client.close())
        self.runner.close()


@pytest.fixture(params=[SyncCaller, AsyncCaller], ids=["sync", "aio"])
def caller(request):
    """Makes callers, which are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(*args, **settings):
            return stack.enter_context(contextlib.closing(request.param(*args, **settings)))

        yield make


def closed_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_calls_go_to_every_replica_in_turn(deployments, caller):
    with serving("a") as a, serving("b") as b, serving("c") as c:
        deployments.put("chat", {"targets": [a.address, b.address, c.address]})
        chat = caller()
        assert chat.client.address == ADDRESS
        wait_for(lambda: {chat.who() for _ in range(6)} == {"a", "b", "c"})
        counts = {}
        for _ in range(30):
            name = chat.who()
            counts[name] = counts.get(name, 0) + 1
        assert counts == {"a": 10, "b": 10, "c": 10}
    assert deployments.num_asked == 1


def test_a_replica_that_has_gone_is_noticed_before_the_call_is_repeated(deployments, caller):
    with serving("b") as b:
        with serving("a") as a:
            deployments.put("chat", {"targets": [a.address]})
            chat = caller()
            assert chat.who() == "a"
            assert chat.count(3) == ["a"] * 3
            deployments.put("chat", {"targets": [b.address]})
        assert chat.who() == "b"
        assert chat.count(3) == ["b"] * 3


def test_replicas_are_found_again_when_the_answer_is_old(deployments, caller):
    with serving("a") as a, serving("b") as b:
        deployments.put("chat", {"targets": [a.address]}, refresh_s=0.05)
        chat = caller()
        assert chat.who() == "a"
        deployments.put("chat", {"targets": [b.address]}, refresh_s=0.05)
        wait_for(lambda: chat.who() == "b")


def test_a_call_outlives_the_lane_that_it_is_on(deployments, caller):
    """The replica has left the deployment and still answers what it has begun."""
    with serving("a") as a, serving("b") as b:
        deployments.put("chat", {"targets": [a.address]}, refresh_s=0.0)
        chat = caller()
        moved = {"targets": [b.address]}
        if isinstance(chat, AsyncCaller):

            async def both():
                stream = chat.client.generate(method="count", n=100)
                first = await anext(stream)
                deployments.put("chat", moved, refresh_s=0.0)
                while await chat.client.predict(method="who") != "b":
                    await asyncio.sleep(0.01)
                return [first, *[item async for item in stream]]

            items = chat.runner.run(both())
        else:
            stream = chat.client.generate(method="count", n=100)
            items = [next(stream)]
            deployments.put("chat", moved, refresh_s=0.0)
            wait_for(lambda: chat.who() == "b")
            items += list(stream)
        assert items == ["a"] * 100


def test_nobody_there_is_unavailable_and_was_not_executed(deployments, caller):
    deployments.put("chat", {"targets": []})
    chat = caller()
    with pytest.raises(UnavailableError, match="no replica of modelkit://lab/chat takes calls now") as caught:
        chat.who()
    assert not caught.value.executed
    assert deployments.num_asked == RetryPolicy().max_attempts
    with pytest.raises(UnavailableError, match="no replica"):
        chat.count(1)
    deployments.put("chat", {"targets": [f"127.0.0.1:{closed_port()}"]})
    with pytest.raises(UnavailableError, match="no server listens there") as caught:
        chat.who()
    assert "modelkit ps" in caught.value.cure


@contextlib.contextmanager
def once_asked(deployments, num_times, *what):
    """Write down what the deployment is once the compute was asked so often, which tells that a caller waits."""

    def put():
        wait_for(lambda: deployments.num_asked >= num_times)
        deployments.put(*what)

    later = threading.Thread(target=put)
    later.start()
    yield
    later.join()


def test_a_call_waits_for_the_compute_no_longer_than_its_deadline(deployments, caller):
    with serving("a") as a:
        deployments.put("chat", {"targets": [a.address]})
        chat = caller()
        with deployments.silent():  # until the call is over
            with pytest.raises(DeadlineExceededError, match=r"has not said within 0\.2 s") as caught:
                chat.who(timeout_s=0.2)
            assert not caught.value.executed
            with pytest.raises(DeadlineExceededError, match=r"is not ready after 0\.2 s"):
                chat.wait_ready(0.2)
        assert chat.who() == "a"
    assert deployments.num_asked == 1  # all of them have waited for the same answer


def test_calls_wait_for_nobody_while_what_is_known_is_in_doubt(deployments, caller):
    """Some replica was not there for some call: that one waits before it is repeated, and no other."""
    with serving("a") as a:
        deployments.put("chat", {"targets": [a.address]})
        chat = caller()
        assert chat.who() == "a"
        with deployments.silent():
            chat.client._deployment.doubt(time.monotonic())
            assert [chat.who() for _ in range(20)] == ["a"] * 20
            wait_for(lambda: deployments.num_asked == 2)  # meanwhile
    with deployments.silent(), pytest.raises(DeadlineExceededError, match="has not said"):
        chat.who(timeout_s=2.0)  # there is nobody: it is repeated, for which it has to wait


async def test_many_asynchronous_calls_that_wait_keep_no_thread_from_others(deployments):
    with serving("a") as a:
        deployments.put("chat", {"targets": [a.address]})
        async with AsyncClient(ADDRESS) as client:
            with deployments.silent():
                calls = [asyncio.create_task(client.predict(method="who")) for _ in range(100)]
                while deployments.num_asked == 0:
                    await asyncio.sleep(0.01)
                assert await asyncio.to_thread(lambda: 7) == 7
                calls[0].cancel()  # and nobody else
                await asyncio.sleep(0.05)
            assert await asyncio.gather(*calls[1:]) == ["a"] * 99


def test_close_ends_calls_whose_replica_has_left_the_deployment(deployments, caller):
    with serving("a") as a, serving("b") as b:
        deployments.put("chat", {"targets": [a.address]}, refresh_s=0.0)
        chat = caller()
        moved = {"targets": [b.address]}
        if isinstance(chat, AsyncCaller):

            async def close_meanwhile():
                stream = chat.client.generate(method="count", n=10_000)
                await anext(stream)
                deployments.put("chat", moved, refresh_s=0.0)
                while await chat.client.predict(method="who") != "b":
                    await asyncio.sleep(0.01)
                await chat.client.close()
                return [item async for item in stream]

            with pytest.raises(CancelledCallError):
                chat.runner.run(close_meanwhile())
        else:
            stream = chat.client.generate(method="count", n=10_000)
            next(stream)
            deployments.put("chat", moved, refresh_s=0.0)
            wait_for(lambda: chat.who() == "b")
            chat.client.close()
            with pytest.raises(CancelledCallError):
                list(stream)


def test_a_deployment_that_comes_up_meanwhile_answers(deployments, caller):
    deployments.put("chat", {"targets": []})
    chat = caller(retry=PATIENT)
    with serving("a") as a, once_asked(deployments, 2, "chat", {"targets": [a.address]}):
        assert chat.who() == "a"


def test_wait_ready_waits_for_the_first_replica(deployments, caller):
    deployments.put("chat", {"targets": []})
    chat = caller()
    with pytest.raises(CallError, match="is not ready after"):
        chat.wait_ready(0.3)
    num_asked = deployments.num_asked
    with serving("a") as a, once_asked(deployments, num_asked + 2, "chat", {"targets": [a.address]}):
        chat.wait_ready(30)
        assert chat.who() == "a"


def test_what_holds_calls_is_asked_where_no_replica_is(deployments, caller):
    with serving("holds") as holds, serving("a") as a:
        deployments.put("chat", {"targets": [], "waiting": [holds.address]})
        chat = caller()
        assert chat.who() == "holds"
        deployments.put("chat", {"targets": [a.address], "waiting": [holds.address]}, refresh_s=3600)
        fresh = caller()
        assert fresh.who() == "a"
        # The compute still names a replica that has gone: the holder gets the call.
        deployments.put("chat", {"targets": [f"127.0.0.1:{closed_port()}"], "waiting": [holds.address]})
        assert caller().who() == "holds"


def test_a_canary_gets_its_share(deployments, caller):
    with serving("stable") as stable, serving("canary") as canary:
        deployments.put(
            "chat", {"targets": [stable.address], "weight": 80}, {"targets": [canary.address], "weight": 20}
        )
        chat = caller()
        answers = [chat.who() for _ in range(300)]
    assert 20 < answers.count("canary") < 120
    assert answers.count("stable") + answers.count("canary") == 300


def test_metadata_of_the_route_goes_with_every_call(deployments, caller):
    with serving("a", api_key="open-sesame") as a:
        deployments.put("chat", {"targets": [a.address]})
        with pytest.raises(UnauthenticatedError):
            caller().who()
        deployments.put("chat", {"targets": [a.address], "metadata": {"authorization": "Bearer open-sesame"}})
        assert caller().who() == "a"


@contextlib.contextmanager
def hiding_deadlines(address):
    """A proxy that passes unary calls on, and their metadata, and keeps their deadlines to itself; gives its address."""
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(4) as threads:

        class Proxy(grpc.GenericRpcHandler):
            def service(self, call):
                forward = channel.unary_unary(call.method)
                metadata = [pair for pair in call.invocation_metadata if pair[0] != "user-agent"]
                return grpc.unary_unary_rpc_method_handler(
                    lambda request, _: forward(request, metadata=metadata)
                )

        server = grpc.server(threads, handlers=[Proxy()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def test_the_deadline_is_told_where_the_proxy_hides_it(deployments, caller):
    with serving("a") as a, hiding_deadlines(a.address) as proxy:
        deployments.put("chat", {"targets": [proxy]}, carries_deadline=True)
        assert caller().call("remaining", timeout_s=60.0) is None
        deployments.put("chat", {"targets": [proxy]}, carries_deadline=False)
        assert 0 < caller().call("remaining", timeout_s=60.0) <= 60
        assert caller().call("remaining") is None


def test_the_servers_own_deadline_counts_before_what_is_told(deployments, caller):
    with serving("a") as a, Client(a.address, headers={"x-modelkit-timeout-ms": "1"}) as client:
        assert client.predict(method="remaining", timeout_s=60.0) > 1
        assert client.predict(method="remaining") < 1


def test_the_address_of_a_replica_that_has_gone_is_another_deployments_now(deployments, caller):
    """Nothing of a call reaches the other model, whatever key that wants; the compute is asked again."""
    meant = {"x-modelkit-deployment": "chat"}
    with (
        serving("other", deployment="other", api_key="sk-other") as other,
        serving("a", deployment="chat") as a,
    ):
        deployments.put("chat", {"targets": [other.address], "metadata": meant})
        with pytest.raises(
            UnavailableError, match="no replica of chat is here any more, but one of other"
        ) as caught:
            caller().who()
        assert not caught.value.executed
        chat = caller(retry=PATIENT)
        num_asked = deployments.num_asked
        with once_asked(deployments, num_asked + 2, "chat", {"targets": [a.address], "metadata": meant}):
            assert chat.who() == "a"
    with serving("a", deployment="chat") as a, Client(a.address) as client:
        assert client.predict(method="who") == "a"  # by its address


def test_the_api_key_is_the_computes(deployments, caller, monkeypatch):
    add_compute(
        Compute(name="lab", kind="ray", address=str(deployments.path), api_key_env="LAB_KEY"), replace=True
    )
    with serving("a", api_key="open-sesame") as a:
        deployments.put("chat", {"targets": [a.address]})
        with pytest.raises(UsageError, match="LAB_KEY has none"):
            caller()
        monkeypatch.setenv("LAB_KEY", "open-sesame")
        chat = caller()
        assert chat.who() == "a"
        assert "open-sesame" not in repr(chat.client)
        with pytest.raises(UnauthenticatedError):
            caller(api_key="wrong").who()


def test_a_key_does_not_leave_the_machine_in_plain_text(deployments, caller):
    deployments.put("chat", {"targets": ["192.0.2.1:1"]})
    with pytest.raises(UsageError, match=r"would travel to 192\.0\.2\.1:1 in plain text"):
        caller(api_key="sk-1").who()


def test_errors_of_locating_are_told_as_they_are(deployments, caller):
    with pytest.raises(UsageError, match="there is no compute 'lap'") as caught:
        caller("modelkit://lap/chat")
    assert "did you mean lab" in caught.value.cure
    for address in ("modelkit://lab", "modelkit://lab/a/b", "modelkit:///a"):
        with pytest.raises(UsageError, match="names no deployment"):
            caller(address)
    deployments.put("chat", {"targets": []})
    with pytest.raises(UnknownDeploymentError, match="has no deployment 'chap'") as caught:
        caller("modelkit://lab/chap").who()
    assert "did you mean chat" in caught.value.cure
    deployments.path.unlink()
    with pytest.raises(DeployError, match="cannot be reached"):
        caller().who()


def test_a_compute_that_is_away_keeps_nobody_from_its_replicas(deployments, caller):
    with serving("a") as a:
        deployments.put("chat", {"targets": [a.address]}, refresh_s=0.0)
        chat = caller()
        assert chat.who() == "a"
        deployments.path.unlink()
        assert [chat.who() for _ in range(20)] == ["a"] * 20
    with pytest.raises(UnavailableError, match="no server listens there"):
        chat.who()


def test_a_deployment_that_was_stopped_says_so(deployments, caller):
    with serving("a") as a:
        deployments.put("chat", {"targets": [a.address]})
        chat = caller()
        assert chat.who() == "a"
        deployments.remove("chat")
    with pytest.raises(UnknownDeploymentError):
        chat.who()


def wait_for(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def changing(deployments, rounds):
    """Replace the two replicas again and again, the way a rolling update does: the new one first, then drain the old."""
    with contextlib.ExitStack() as stack:
        running = []

        def start(name):
            own = contextlib.ExitStack()
            server = own.enter_context(serving(name))
            stack.push(own)
            running.append((server, own))

        def tell():
            deployments.put("chat", {"targets": [server.address for server, _ in running]}, refresh_s=0.2)

        start("0")
        start("0")
        tell()
        yield
        for number in range(1, rounds + 1):
            start(str(number))
            tell()
            time.sleep(0.1)
            _, old = running.pop(0)
            tell()
            old.close()  # drains
            yield


def test_no_call_is_lost_while_replicas_come_and_go(deployments):
    failures, answers = [], []
    over = threading.Event()

    def call(client):
        while not over.is_set():
            try:
                answers.append(client.predict(method="who"))
                answers.extend(client.generate(method="count", n=2))
            except CallError as error:
                failures.append(error)

    with contextlib.ExitStack() as stack:
        steps = changing(deployments, rounds=6)
        next(steps)
        client = stack.enter_context(Client(ADDRESS))
        threads = [threading.Thread(target=call, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            next(steps)
            time.sleep(0.1)
        over.set()
        for thread in threads:
            thread.join()
    steps.close()
    assert failures == []
    assert len(set(answers)) >= 5


async def test_no_asynchronous_call_is_lost_while_replicas_come_and_go(deployments):
    failures, answers = [], []
    over = asyncio.Event()

    async def call(client):
        while not over.is_set():
            try:
                answers.append(await client.predict(method="who"))
                answers.extend([item async for item in client.generate(method="count", n=2)])
            except CallError as error:
                failures.append(error)

    steps = changing(deployments, rounds=6)
    await asyncio.to_thread(next, steps)
    async with AsyncClient(ADDRESS) as client:
        tasks = [asyncio.create_task(call(client)) for _ in range(4)]
        for _ in range(6):
            await asyncio.to_thread(next, steps)
            await asyncio.sleep(0.1)
        over.set()
        await asyncio.gather(*tasks)
    await asyncio.to_thread(steps.close)
    assert failures == []
    assert len(set(answers)) >= 5
