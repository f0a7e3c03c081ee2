"""From a folder or a version to what is deployed."""

import pytest

from greeter import MODEL, send, write_greeter
from modelkit.deploy.source import Wishes, deployment_name, read_target
from modelkit.errors import ConfigError, RegistryError, UsageError
from modelkit.registry import LayoutReference, open_store


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "greeter"
    path.mkdir()
    (path / "config.yaml").write_text("model:\n  id: My.Greeter\n")
    (path / "config.big.yaml").write_text("deployment:\n  min_replicas: 4\n")
    (path / "model.py").write_text(MODEL)
    return path


def test_a_folder_is_named_by_its_content(folder):
    target = read_target(str(folder), Wishes())
    spec = target.spec
    assert (spec.name, spec.model_id) == ("my-greeter", "My.Greeter")
    assert spec.version == f"dev-{spec.digest.removeprefix('sha256:')[:8]}"
    assert target.origin.folder == folder.resolve()
    assert read_target(str(folder), Wishes()).spec == spec
    (folder / "model.py").write_text(MODEL + "\n# changed\n")
    assert read_target(str(folder), Wishes()).spec.digest != spec.digest


def test_settings_are_part_of_what_it_is(folder):
    plain = read_target(str(folder), Wishes()).spec
    laid_over = read_target(str(folder), Wishes(environment="big", overrides=("server.max_queue=3",))).spec
    assert laid_over.digest != plain.digest
    assert laid_over.parsed_config().deployment.min_replicas == 4
    assert laid_over.parsed_config().server.max_queue == 3
    assert (laid_over.environment, laid_over.overrides) == ("big", ("server.max_queue=3",))


@pytest.mark.parametrize(
    ("model_id", "name"),
    [("chat", "chat"), ("Qwen2.5_7B", "qwen2-5-7b"), ("a" * 64, "a" * 53), ("x" * 52 + "-y", "x" * 52)],
)
def test_the_name_of_a_deployment(model_id, name):
    assert deployment_name(model_id) == name


@pytest.mark.parametrize("name", ["Chat", "9chat", "-chat", "a/b", "a" * 54])
def test_a_name_that_cannot_be(folder, name):
    with pytest.raises(UsageError, match="cannot be the name of a deployment"):
        read_target(str(folder), Wishes(name=name))


def test_a_folder_with_mistakes_says_all_of_them(folder):
    (folder / "config.yaml").write_text("model:\n  id: greeter\nservr: {}\ndeployment:\n  min_replicas: -1\n")
    with pytest.raises(ConfigError) as caught:
        read_target(str(folder), Wishes())
    messages = " ".join(problem.message for problem in caught.value.problems)
    assert "servr" in messages
    assert "min_replicas" in messages


@pytest.fixture
def layout(tmp_path):
    """Two versions of a model in a layout, the second with other code."""
    folder, reference = write_greeter(tmp_path / "greeter"), LayoutReference(tmp_path / "layout")
    with open_store(reference) as store:
        first = send(folder, store)
        (folder / "model.py").write_text(MODEL + "\n# v2\n")
        send(folder, store)
    return reference, first


def test_a_version_is_pinned_by_its_digest(layout):
    reference, first = layout
    for name in (reference.at(tag="v1"), reference.at(digest=first.digest)):
        target = read_target(str(name), Wishes())
        assert (target.spec.version, target.spec.digest, target.spec.name) == ("v1", first.digest, "greeter")
        assert target.origin.reference == str(reference.at(digest=first.digest))
        assert target.origin.folder is None


def test_the_last_version_has_its_number(layout):
    reference, _ = layout
    assert read_target(str(reference.at(tag="latest")), Wishes()).spec.version == "v2"


def test_settings_can_be_laid_over_a_version(layout):
    reference, first = layout
    wishes = Wishes(overrides=("deployment.min_replicas=3",))
    spec = read_target(str(reference.at(tag="v1")), wishes).spec
    assert spec.digest == first.digest
    assert spec.parsed_config().deployment.min_replicas == 3
    assert spec.overrides == ("deployment.min_replicas=3",)


def test_an_environment_that_the_version_lacks(layout):
    reference, _ = layout
    with pytest.raises(RegistryError, match=r"no config\.big\.yaml"):
        read_target(str(reference.at(tag="v1")), Wishes(environment="big"))
