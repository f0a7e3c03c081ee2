"""Which of this machine's pip settings a build gets to see."""

import pytest

from modelkit.image.secrets import build_secrets


@pytest.fixture
def home(tmp_path):
    return {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "none")}


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch):
    """The machine that runs the tests may have a /etc/pip.conf."""
    from modelkit.image import secrets

    real = secrets._pip_files
    monkeypatch.setattr(
        secrets, "_pip_files", lambda env: [path for path in real(env) if str(path).startswith(env["HOME"])]
    )


def pip_conf(environment):
    return build_secrets(environment).files["pip_conf"].decode()


def test_a_machine_without_settings_has_empty_secrets(home):
    assert build_secrets(home).files == dict.fromkeys(["ca", "pip_conf", "uv_toml", "apt_conf"], b"")


def test_files_then_variables(home, tmp_path):
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://one.example.com/simple\ntimeout = 7\n[install]\npre = true\n"
    )
    home["PIP_INDEX_URL"] = "https://two.example.com/simple"
    assert pip_conf(home) == (
        "[global]\nindex-url = https://two.example.com/simple\ntimeout = 7\npre = true\n"
    )


def test_what_only_this_machine_has_is_left_out(home):
    home |= {
        "PIP_EXTRA_INDEX_URL": "file:///srv/simple https://pypi.example.com/simple",
        "PIP_FIND_LINKS": "/srv/wheels",
        "PIP_CACHE_DIR": "/cache",
    }
    assert pip_conf(home) == "[global]\nextra-index-url = https://pypi.example.com/simple\n"


@pytest.mark.parametrize("name", ["PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_the_ca_of_a_proxy(home, tmp_path, name):
    (tmp_path / "ca.pem").write_text("certificate")
    secrets = build_secrets(home | {name: str(tmp_path / "ca.pem")})
    assert secrets.files["ca"] == b"certificate"
    assert secrets.files["pip_conf"] == b"[global]\ncert = /run/secrets/ca.crt\n"
    assert b"/run/secrets/ca.crt" in secrets.files["apt_conf"]


def test_a_login_from_netrc(home, tmp_path):
    (tmp_path / ".netrc").write_text("machine pypi.example.com login ada password s3cret/one\n")
    secrets = build_secrets(home | {"PIP_INDEX_URL": "https://pypi.example.com/simple"})
    assert b"https://ada:s3cret%2Fone@pypi.example.com/simple" in secrets.files["pip_conf"]
    assert secrets.hide("it said s3cret/one and s3cret%2Fone") == "it said **** and ****"


def test_passwords_and_tokens_are_hidden_everywhere(home):
    url = "https://tok3n@one.example.com/simple https://ada:p4ss@two.example.com/simple"
    secrets = build_secrets(home | {"PIP_EXTRA_INDEX_URL": url})
    assert secrets.hide(f"Looking in {url}") == (
        "Looking in https://****@one.example.com/simple https://ada:****@two.example.com/simple"
    )
    assert "tok3n" not in repr(secrets)


def test_uv_gets_the_same_indexes(home):
    import tomllib

    home |= {
        "PIP_INDEX_URL": "https://ada:p4ss@one.example.com/simple",
        "PIP_EXTRA_INDEX_URL": "https://two.example.com/simple",
        "PIP_TRUSTED_HOST": "two.example.com",
    }
    settings = tomllib.loads(build_secrets(home).files["uv_toml"].decode())
    assert settings["index"] == [
        {"url": "https://two.example.com/simple"},
        {"url": "https://ada:p4ss@one.example.com/simple", "default": True},
    ]
    assert settings["allow-insecure-host"] == ["two.example.com"]
