"""The address of the server: open to this machine alone, unless there is a key."""

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")
pytest.importorskip("fastapi", reason="the extra `serve` brings fastapi")
pytest.importorskip("prometheus_client", reason="the extra `serve` brings prometheus-client")

from mftcoder.errors import ConfigError
from mftcoder.serving.server import bind


@pytest.mark.parametrize("host", ["a" * 300, "a..b"])
def test_what_is_no_address_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match="--host"):
        bind(host, 0, ())


def test_an_address_of_the_network_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="other machines could use this model without a key"):
        bind("0.0.0.0", 0, ())
    bind("0.0.0.0", 0, ("a-key-of-the-test",)).close()


def test_an_address_of_this_machine_needs_none() -> None:
    with bind("127.0.0.1", 0, ()) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
