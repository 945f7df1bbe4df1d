"""Keys made by the OpenSSL under Python's ssl, checked by another reader of them."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from atoll_agent.keys import new_key


def test_a_key_is_p256_and_its_halves_match():
    private, public = new_key()
    key = serialization.load_pem_private_key(private, None)
    assert isinstance(key.curve, ec.SECP256R1)
    assert key.public_key() == serialization.load_der_public_key(public)
    assert private.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_no_two_are_the_same():
    assert len({new_key()[1] for _ in range(50)}) == 50
