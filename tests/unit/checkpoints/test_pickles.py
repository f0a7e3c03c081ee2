import os
import pickle
import pickletools
import zipfile

import pytest

from modelkit.checkpoints.pickles import scan
from modelkit.checkpoints.resolve import Terms, prepare
from modelkit.config import load_config
from modelkit.errors import LoadError


class Evil:
    def __reduce__(self):
        return os.system, ("echo this never runs",)


def torch_like(path, payload):
    """Write what torch.save writes: a zip with a pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload))
        archive.writestr("archive/version", "3\n")
    return path


def test_harmless_weights_pass(tmp_path):
    assert scan(torch_like(tmp_path / "a.bin", {"a": [1, 2]}), "a.bin", "org/x") == []


@pytest.mark.parametrize("kind", ["zip", "plain"])
def test_dangerous_imports_are_named(tmp_path, kind):
    path = tmp_path / "a.bin"
    if kind == "zip":
        torch_like(path, Evil())
    else:
        path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(LoadError, match=rf"would call {os.system.__module__}\.system when it is loaded"):
        scan(path, "a.bin", "org/x")


def test_unknown_imports_are_told(tmp_path):
    path = torch_like(tmp_path / "a.bin", pickletools.OpcodeInfo)
    assert scan(path, "a.bin", "org/x") == ["pickletools.OpcodeInfo"]


def test_what_is_cut_off_after_an_import_is_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(Evil())[:-6])
    with pytest.raises(LoadError, match=r"system|cannot be scanned|damaged"):
        scan(path, "a.pkl", "org/x")


def test_an_allowed_pickle_of_a_hub_is_scanned_before_it_counts(hub, cache, write_folder, tmp_path):
    import hashlib

    evil = torch_like(tmp_path / "evil.bin", Evil()).read_bytes()
    hub.add_repo("org/evil", {"pytorch_model.bin": evil})
    url, sha256 = hub.url_of("org/evil", "pytorch_model.bin"), hashlib.sha256(evil).hexdigest()
    files = f"type: http, files: [{{url: '{url}', sha256: '{sha256}'}}]"
    terms = Terms(cache=cache, offline=False)
    folder = write_folder(files)
    with pytest.raises(LoadError, match="which can run any code"):
        prepare(load_config(folder), folder, terms)
    folder = write_folder(f"{files}, allow_pickle: [pytorch_model.bin]")
    for _ in range(2):
        with pytest.raises(LoadError, match=r"the pickle pytorch_model\.bin of http would call"):
            prepare(load_config(folder), folder, terms)
    assert cache.list_checkpoints() == []
    assert not (folder / "modelkit.lock").exists()


def test_an_allowed_pickle_that_is_harmless_is_used(cache, write_folder):
    folder = write_folder("type: local, path: ., allow_pickle: [a.bin]")
    torch_like(folder / "a.bin", {"weights": [1.0]})
    assert prepare(load_config(folder), folder, Terms(cache=cache)) == {"default": folder.resolve()}
