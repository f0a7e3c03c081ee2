"""What the compute of a cluster is told, and what it says where it cannot be."""

import pytest

from modelkit.computes import Compute
from modelkit.computes.kubernetes_api import KubernetesApi, label_selector, locate
from modelkit.errors import DeployError, UsageError


def compute(**fields):
    return Compute(**{"name": "prod", "kind": "kubernetes", "address": "prod", **fields})


@pytest.fixture
def kubeconfig(tmp_path):
    """A kubeconfig whose cluster answers nobody."""
    path = tmp_path / "config"
    path.write_text(
        "apiVersion: v1\nkind: Config\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "users: [{name: u, user: {token: t0ken}}]\n"
        "contexts: [{name: prod, context: {cluster: c, user: u, namespace: models}}]\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("endpoint", "target", "url", "tls"),
    [
        ("10.0.0.7:30051", "10.0.0.7:30051", "http://10.0.0.7:30051", False),
        ("https://{name}.example.com", "chat.example.com:443", "https://chat.example.com:443", True),
        ("models.example.com:443", "models.example.com:443", "https://models.example.com:443", True),
        ("{name}.example.com", "chat.example.com:50051", "http://chat.example.com:50051", False),
    ],
)
def test_an_endpoint_that_a_person_gave_is_taken(endpoint, target, url, tls):
    found = locate(compute(endpoint=endpoint), "chat")
    assert (found.routes[0].targets, found.http_url, found.tls) == ((target,), url, tls)


def test_the_namespace_is_that_of_the_context(kubeconfig):
    with KubernetesApi(compute(kubeconfig=kubeconfig)) as api:
        assert api.namespace == "models"
    with KubernetesApi(compute(kubeconfig=kubeconfig, namespace="other")) as api:
        assert api.namespace == "other"


def test_a_context_that_is_not_there_is_refused_with_those_that_are(kubeconfig):
    with pytest.raises(UsageError, match=r"no context 'staging'.*it has: prod"):
        KubernetesApi(compute(kubeconfig=kubeconfig, address="staging"))
    with pytest.raises(UsageError, match="/nowhere has no context"):
        KubernetesApi(compute(kubeconfig="/nowhere"))
    with pytest.raises(UsageError, match="there is none"):
        KubernetesApi(compute(address="in-cluster"))


def test_a_cluster_that_is_away_is_named_with_the_cure(kubeconfig):
    with (
        KubernetesApi(compute(kubeconfig=kubeconfig)) as api,
        pytest.raises(DeployError, match=r"cannot be reached at http://127\.0\.0\.1:9") as error,
    ):
        api.get("/version")
    assert "kubectl --context prod" in error.value.cure


def test_a_token_is_asked_for_by_its_variable(kubeconfig, monkeypatch):
    monkeypatch.delenv("PROD_TOKEN", raising=False)
    with pytest.raises(UsageError, match="PROD_TOKEN is not set"):
        KubernetesApi(compute(kubeconfig=kubeconfig, token_env="PROD_TOKEN"))


def test_objects_are_found_by_their_labels():
    assert label_selector() == "app.kubernetes.io/managed-by=modelkit"
    assert label_selector("chat").endswith(",app.kubernetes.io/instance=chat")
