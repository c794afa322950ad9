"""Keys and tokens."""

from __future__ import annotations

import pytest
from support.clock import Clock

from boxlite_server import errors
from boxlite_server.coordinator.auth import TOKEN_SECONDS, Authenticator


def test_without_a_key_everybody_is_let_in() -> None:
    auth = Authenticator(None, Clock())
    assert auth.authenticate(None).sub == "anonymous"
    assert auth.authenticate("Bearer whatever").sub == "anonymous"
    assert auth.issue_token("whatever")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic secret", "Bearer secre", "Bearer é"])
def test_with_a_key_nothing_else_opens(header: str | None) -> None:
    with pytest.raises(errors.AuthError):
        Authenticator("secret", Clock()).authenticate(header)


def test_the_key_opens() -> None:
    assert Authenticator("secret", Clock()).authenticate("bearer secret").sub == "api-key"


def test_a_token_opens_until_it_expires() -> None:
    clock = Clock()
    auth = Authenticator("secret", clock)
    token = auth.issue_token("secret")
    assert Authenticator("secret", clock).authenticate(f"Bearer {token}")  # also after a restart
    clock.now += TOKEN_SECONDS + 2
    with pytest.raises(errors.AuthError, match="expired"):
        auth.authenticate(f"Bearer {token}")


def test_a_token_dies_with_its_key_and_cannot_be_prolonged() -> None:
    clock = Clock()
    token = Authenticator("secret", clock).issue_token("secret")
    with pytest.raises(errors.AuthError):
        Authenticator("new secret", clock).authenticate(f"Bearer {token}")
    expiry, _, signature = token.partition(".")
    with pytest.raises(errors.AuthError):
        Authenticator("secret", clock).authenticate(f"Bearer {int(expiry) + 1}.{signature}")


def test_a_wrong_secret_gets_no_token() -> None:
    with pytest.raises(errors.AuthError):
        Authenticator("secret", Clock()).issue_token("wrong")
