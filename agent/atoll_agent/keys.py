"""New private keys, made by the OpenSSL that Python's own `ssl` module runs on.

Python can use keys and not make them. The functions are those of OpenSSL 1.1.1
and 3 alike (EVP_PKEY_keygen(3), PEM_write_bio_PKCS8PrivateKey(3), i2d_PUBKEY(3)).
"""

import _ssl
import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_void_p
from pathlib import Path

from atoll_agent.errors import AgentError

_EVP_PKEY_EC = 408
_MOST_BYTES = 4096

_PROTOTYPES = {
    "EVP_PKEY_CTX_new_id": (c_void_p, [c_int, c_void_p]),
    "EVP_PKEY_CTX_free": (None, [c_void_p]),
    "EVP_PKEY_keygen_init": (c_int, [c_void_p]),
    "EVP_PKEY_CTX_ctrl_str": (c_int, [c_void_p, c_char_p, c_char_p]),
    "EVP_PKEY_keygen": (c_int, [c_void_p, POINTER(c_void_p)]),
    "EVP_PKEY_free": (None, [c_void_p]),
    "BIO_s_mem": (c_void_p, []),
    "BIO_new": (c_void_p, [c_void_p]),
    "BIO_free": (c_int, [c_void_p]),
    "BIO_read": (c_int, [c_void_p, c_void_p, c_int]),
    "PEM_write_bio_PKCS8PrivateKey": (
        c_int,
        [c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_void_p],
    ),
    "i2d_PUBKEY": (c_int, [c_void_p, POINTER(c_void_p)]),
    "RAND_status": (c_int, []),
}


def new_key() -> tuple[bytes, bytes]:
    """A P-256 key: the private one as PKCS #8 PEM, the public one as SubjectPublicKeyInfo DER."""
    crypto = _library()
    key = c_void_p()
    context = crypto.EVP_PKEY_CTX_new_id(_EVP_PKEY_EC, None)
    try:
        _must(crypto.RAND_status())
        _must(crypto.EVP_PKEY_keygen_init(context))
        _must(crypto.EVP_PKEY_CTX_ctrl_str(context, b"ec_paramgen_curve", b"P-256"))
        _must(crypto.EVP_PKEY_keygen(context, byref(key)))
        return _private_pem(crypto, key), _public_der(crypto, key)
    finally:
        crypto.EVP_PKEY_free(key)
        crypto.EVP_PKEY_CTX_free(context)


def _private_pem(crypto: ctypes.CDLL, key: c_void_p) -> bytes:
    memory = crypto.BIO_new(crypto.BIO_s_mem())
    try:
        _must(crypto.PEM_write_bio_PKCS8PrivateKey(memory, key, None, None, 0, None, None))
        buffer = ctypes.create_string_buffer(_MOST_BYTES)
        length = crypto.BIO_read(memory, buffer, _MOST_BYTES)
        _must(length)
        return buffer.raw[:length]
    finally:
        crypto.BIO_free(memory)


def _public_der(crypto: ctypes.CDLL, key: c_void_p) -> bytes:
    length = crypto.i2d_PUBKEY(key, None)
    _must(length)
    buffer = ctypes.create_string_buffer(length)
    # The function moves the pointer it is given, so it gets one of its own.
    end = ctypes.cast(buffer, c_void_p)
    _must(crypto.i2d_PUBKEY(key, byref(end)))
    return buffer.raw


def _library() -> ctypes.CDLL:
    # A symbol is looked up in the module and in what it is linked with; no library's name or
    # version is guessed. Where `ssl` is built into the program, the program itself has it.
    module = getattr(_ssl, "__file__", None)
    # But on Windows, where a module shows its own symbols alone and OpenSSL lies beside it.
    beside = sorted(Path(module).parent.glob("libcrypto-*.dll")) if module else []
    crypto = ctypes.CDLL(str(beside[0]) if beside else module)
    try:
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(crypto, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise AgentError(
            f"This Python's ssl module gives no way to make a key ({error}); "
            "use the distribution's python3."
        ) from error
    return crypto


def _must(result: int | c_long | None) -> None:
    if not isinstance(result, int) or result <= 0:
        raise AgentError("OpenSSL could not make a key.")
