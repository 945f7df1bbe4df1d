"""Where `atoll export` serves."""

from pathlib import Path

import pytest

from atoll.cli.export import address
from atoll.model.errors import ConfigurationError
from atoll.nbd.listening import TcpAddress, TlsFiles, UnixAddress


def test_places() -> None:
    assert address(None, None, None) is None
    assert address(Path("s"), None, None) == UnixAddress(Path("s"))
    assert address(None, "127.0.0.1:10809", None) == TcpAddress("127.0.0.1", 10809)
    assert address(None, "[::1]:0", None) == TcpAddress("::1", 0)
    tls = TlsFiles(Path("p/server-cert.pem"), Path("p/server-key.pem"), Path("p/ca-cert.pem"))
    assert address(None, "nas:1", Path("p")) == TcpAddress("nas", 1, tls)


@pytest.mark.parametrize(
    ("socket", "listen", "tls", "says"),
    [
        (Path("s"), "127.0.0.1:1", None, "not both"),
        (None, None, Path("p"), "--tls is for --listen"),
        *(
            (None, wrong, None, "no address with a port")
            for wrong in ("1", ":1", "a:", "a:65536", "a:b")
        ),
    ],
)
def test_contradictions(
    socket: Path | None, listen: str | None, tls: Path | None, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        address(socket, listen, tls)
