"""What a build step may see of this machine, as secrets: pip's settings, the proxy's CA, apt's settings.

Behind a proxy that inspects TLS, pip in a container finds nothing without the CA bundle of the host, and a private index
asks for a password. BuildKit mounts secrets for a step: they are in no layer, not in the history and not in the log.
What means something on this machine only (folders of wheels, indexes that are folders) is left out.
"""

import configparser
import json
import netrc
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from modelkit.image.dockerfile import SECRETS_DIR

__all__ = ["BuildSecrets", "build_secrets"]

HIDDEN = "****"

# What pip's users set for an index, in the order of pip.conf; lists are divided at white space.
_SETTINGS = (
    "index-url",
    "extra-index-url",
    "trusted-host",
    "timeout",
    "retries",
    "proxy",
    "pre",
    "prefer-binary",
)
_LISTS = frozenset({"extra-index-url", "trusted-host"})
_URLS = frozenset({"index-url", "extra-index-url"})
_SECTIONS = ("global", "install")
_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CA_IN_STEP = f"{SECRETS_DIR}/ca.crt"


@dataclass(frozen=True, slots=True)
class BuildSecrets:
    """The secrets by their id, and every password in them, so that it can be kept out of what is printed."""

    files: Mapping[str, bytes]
    passwords: tuple[str, ...] = ()

    def hide(self, text: str) -> str:
        """Replace each password in a text, as it is and as a URL spells it."""
        for password in self.passwords:
            text = text.replace(password, HIDDEN)
        return text

    def __repr__(self) -> str:
        """Name the secrets and show none."""
        return f"BuildSecrets({', '.join(self.files)})"


def build_secrets(environment: Mapping[str, str] = os.environ) -> BuildSecrets:
    """Return what the steps of a build need of this machine's pip settings and CA bundle; all ids, some empty."""
    settings = _pip_settings(environment)
    ca = _ca_bundle(environment, settings)
    urls = [url for key in _URLS for url in _urls(key, settings, environment)]
    passwords = {secret for url in urls for secret in _passwords(url)}
    return BuildSecrets(
        {
            "ca": ca,
            "pip_conf": _pip_conf(settings, environment, has_ca=bool(ca)),
            "uv_toml": _uv_toml(settings, environment),
            "apt_conf": f'Acquire::https::CaInfo "{_CA_IN_STEP}";\n'.encode() if ca else b"",
        },
        # The longest first: one may be a part of another.
        tuple(sorted(passwords, key=lambda secret: (-len(secret), secret))),
    )


def _ca_bundle(environment: Mapping[str, str], settings: Mapping[str, str]) -> bytes:
    """Return the certificates that this machine trusts where somebody has named a file of them."""
    names = [environment.get(name, "") for name in _CA_VARIABLES] + [settings.get("cert", "")]
    for name in names:
        path = Path(name)
        if name and path.is_file():
            return path.read_bytes()
    return b""


def _urls(key: str, settings: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Return the indexes of a setting that a build can reach, each with its login."""
    urls = settings.get(key, "").split()
    return [_with_login(url, _netrc_file(environment)) for url in urls if not _is_local(url)]


def _pip_conf(settings: Mapping[str, str], environment: Mapping[str, str], *, has_ca: bool) -> bytes:
    lines = []
    for key in _SETTINGS:
        values = settings.get(key, "").split() if key in _LISTS else [settings.get(key, "")]
        values = [value for value in (_urls(key, settings, environment) if key in _URLS else values) if value]
        if values:
            lines.append(f"{key} = {' '.join(values)}")
    if has_ca:
        lines.append(f"cert = {_CA_IN_STEP}")
    return "\n".join(["[global]", *lines, ""]).encode() if lines else b""


def _uv_toml(settings: Mapping[str, str], environment: Mapping[str, str]) -> bytes:
    """Return the same for uv, which reads nothing of pip's: https://docs.astral.sh/uv/reference/settings/."""
    defaults, extras = (_urls(key, settings, environment) for key in ("index-url", "extra-index-url"))
    if not defaults and not extras:
        return b""
    lines = ['index-strategy = "unsafe-best-match"']  # as pip does
    if hosts := settings.get("trusted-host", "").split():
        lines.append(f"allow-insecure-host = {json.dumps(hosts)}")
    for url in extras:
        lines += ["[[index]]", f"url = {json.dumps(url)}"]
    for url in defaults:
        lines += ["[[index]]", f"url = {json.dumps(url)}", "default = true"]
    return "\n".join([*lines, ""]).encode()


def _pip_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return pip's settings as pip would merge them: later files over earlier ones, variables over all of them.

    https://pip.pypa.io/en/stable/topics/configuration/
    """
    settings: dict[str, str] = {}
    for path in _pip_files(environment):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself says what is wrong with it
        for section in _SECTIONS:
            if parser.has_section(section):
                settings |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    for name, value in environment.items():
        if name.startswith("PIP_"):
            settings[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return settings


def _pip_files(environment: Mapping[str, str]) -> Iterator[Path]:
    named = environment.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    home = Path(environment.get("HOME") or Path.home())
    yield from (
        Path(folder) / "pip/pip.conf" for folder in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    )
    yield Path("/etc/pip.conf")
    yield home / ".pip/pip.conf"
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
    yield Path(sys.prefix) / "pip.conf"
    if named:
        yield Path(named)


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file:")


def _netrc_file(environment: Mapping[str, str]) -> Path:
    named = environment.get("NETRC")
    return Path(named) if named else Path(environment.get("HOME") or Path.home()) / ".netrc"


def _with_login(url: str, netrc_file: Path) -> str:
    """Return an index's address with the login that ~/.netrc has for it, which pip would have read there."""
    parts = urlsplit(url)
    if not parts.hostname or "@" in parts.netloc or not netrc_file.is_file():
        return url
    try:
        login = netrc.netrc(str(netrc_file)).authenticators(parts.hostname)
    except (OSError, netrc.NetrcParseError):
        return url
    if login is None:
        return url
    user, _, password = login
    netloc = f"{quote(user, safe='')}:{quote(password or '', safe='')}@{parts.netloc}"
    return urlunsplit(parts._replace(netloc=netloc))


def _passwords(url: str) -> Sequence[str]:
    """Return the secrets of a URL, as written and decoded: `https://TOKEN@host` has one too."""
    match = re.match(r"[a-z+]+://(?P<login>[^/@]+)@", url)
    if match is None:
        return ()
    user, colon, password = match["login"].partition(":")
    secret = password if colon and password else user
    return (secret, unquote(secret))
