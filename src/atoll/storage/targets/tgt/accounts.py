"""CHAP accounts of one tgtd: whom it asks for a secret, and which one it answers with.

tgtd keeps accounts for itself and binds them to targets. It has three peculiarities (account_*
and tgt_target_show_all in usr/target.c) that make the order of what is done here matter:

- A target without accounts lets everybody in. So each target that asks has one more account,
  bound first and unbound last, whose secret nobody knows.
- Bindings are in slots, looked at from the first up to their number. A gap hides accounts, and
  tgtd dies of it when it is asked to show the target. So they are unbound from the last one on,
  and an account is only deleted when nothing is bound to it.
- It shows names, never secrets. So beside each user there is an account that is bound nowhere
  and whose name is a digest of user and secret: it tells whether the secret is still the same.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence

from atoll.model.errors import StorageConflictError
from atoll.storage.backend import Export
from atoll.storage.identity import target_id
from atoll.storage.targets.tgt.tgt_socket import (
    Mode,
    Operation,
    Refusal,
    TargetView,
    TgtRefusedError,
    TgtSocket,
)

_NOBODY = "(nobody)"
_TOLD = "(told "
_OUTGOING = " (outgoing)"


class Accounts:
    """The accounts of one daemon. Callers hold the group's lock."""

    def __init__(self, management: TgtSocket) -> None:
        self._socket = management

    def apply(
        self, exports: Sequence[Export], disconnect: Callable[[TargetView], None]
    ) -> set[str]:
        """Make accounts what the exports want, and bind them to the targets that are there.

        Whoever logged in under other rules is sent to `disconnect`, while nobody
        can log in. Returns the targets concerned. StorageConflictError when tgtd
        cannot do what is wanted; nothing was changed then.
        """
        check(exports)
        wanted = _secrets(exports)
        known = self._known()
        marks = {_mark(user, secret) for user, secret in wanted.items()}
        stale = {
            user
            for user in known
            if not _is_ours(user) and (user not in wanted or _mark(user, wanted[user]) not in known)
        }
        for name in known:
            if name.startswith(_TOLD) and name not in marks:
                self._delete(name)
        views = {view.name: view for view in self._socket.targets()}
        bindings = {export.target: _bindings(export) for export in exports}
        changed = [
            view
            for view in views.values()
            if list(view.accounts) != bindings.get(view.name, [])
            or any(_user(account) in stale for account in view.accounts)
        ]
        if _NOBODY not in known:
            self._add(_NOBODY, secrets.token_urlsafe(24))
        for view in changed:
            self._close(view)
            disconnect(view)
        for user in stale:
            self._delete(user)
        for user, secret in wanted.items():
            if user not in known or user in stale:
                self._add(user, secret)
                self._add(_mark(user, secret), "-")
        for view in changed:
            self._open(view.id, bindings.get(view.name, []))
        return {view.name for view in changed}

    def bind(self, export: Export) -> None:
        """Make a new target ask for its initiators' accounts; they exist."""
        for account in _bindings(export):
            self._bind(target_id(export.volume), account)

    def _close(self, view: TargetView) -> None:
        """Leave a target with the account of nobody."""
        if _NOBODY not in view.accounts:
            if view.accounts:  # of another making: there is no way without an instant open to all
                self._unbind(view.id, view.accounts)
            self._bind(view.id, _NOBODY)
        else:
            self._unbind(view.id, [one for one in view.accounts if one != _NOBODY])

    def _open(self, target: int, accounts: Sequence[str]) -> None:
        """From the account of nobody to these, or to none."""
        if not accounts:
            self._unbind(target, [_NOBODY])
        for account in accounts:
            if account != _NOBODY:
                self._bind(target, account)

    def _bind(self, target: int, account: str) -> None:
        self._about(Operation.BIND, target, account)

    def _unbind(self, target: int, accounts: Iterable[str]) -> None:
        for account in reversed(list(accounts)):
            self._about(Operation.UNBIND, target, account)

    def _about(self, operation: Operation, target: int, account: str) -> None:
        self._socket.call(
            operation, Mode.ACCOUNT, target=target, parameters=f"user={_user(account)}",
            outgoing=account.endswith(_OUTGOING),
        )  # fmt: skip

    def _add(self, user: str, secret: str) -> None:
        self._socket.call(Operation.NEW, Mode.ACCOUNT, parameters=f"user={user},password={secret}")

    def _delete(self, user: str) -> None:
        try:
            self._socket.call(Operation.DELETE, Mode.ACCOUNT, parameters=f"user={user}")
        except TgtRefusedError as error:
            if error.reason != Refusal.NO_USER:
                raise

    def _known(self) -> set[str]:
        lines = self._socket.call(Operation.SHOW, Mode.ACCOUNT).splitlines()
        return {line.removeprefix("    ") for line in lines[1:]}


def check(exports: Sequence[Export]) -> None:
    """StorageConflictError when one tgtd cannot ask for this.

    It has one secret for a user, and one answer for a target.
    """
    known: dict[str, str] = {}
    for export in exports:
        answers = {(chap.mutual_user, chap.mutual_secret) for chap in export.chap.values()}
        if len(answers) > 1:
            raise StorageConflictError(
                f"Target {export.target} can prove itself to all its initiators in one way only; "
                "give their CHAP accounts the same mutual user and secret."
            )
        for user, secret in _pairs(export):
            if known.setdefault(user, secret) != secret:
                raise StorageConflictError(
                    f"CHAP user {user} has two secrets; give each account a user of its own, "
                    "the mutual ones too."
                )
            if _is_ours(user) or user != user.strip() or not user.isprintable() or "," in user:
                raise StorageConflictError(
                    f"{user!r} cannot be a CHAP user here: leave out commas, parentheses around "
                    "it, and blanks at its ends."
                )
        if any(chap.secret == chap.mutual_secret for chap in export.chap.values()):
            raise StorageConflictError(
                f"Target {export.target} would prove itself with the secret it asks for, which "
                "any impostor can send back; choose another mutual secret (RFC 7143, 12.1.3)."
            )


def _secrets(exports: Iterable[Export]) -> dict[str, str]:
    return {user: secret for export in exports for user, secret in _pairs(export)}


def _pairs(export: Export) -> list[tuple[str, str]]:
    found = []
    for chap in export.chap.values():
        found.append((chap.user, chap.secret))
        if chap.mutual_user is not None and chap.mutual_secret is not None:
            found.append((chap.mutual_user, chap.mutual_secret))
    return found


def _bindings(export: Export) -> list[str]:
    """Accounts of a target as tgtd shows them."""
    if not export.chap:
        return []
    incoming = sorted({chap.user for chap in export.chap.values()})
    outgoing = sorted(
        chap.mutual_user + _OUTGOING
        for chap in export.chap.values()
        if chap.mutual_user is not None
    )
    return [_NOBODY, *incoming, *outgoing[:1]]


def _user(account: str) -> str:
    return account.removesuffix(_OUTGOING)


def _is_ours(user: str) -> bool:
    return user.startswith("(") and user.endswith(")")


def _mark(user: str, secret: str) -> str:
    digest = hashlib.sha256(f"{user}\n{secret}".encode()).hexdigest()[:32]
    return f"{_TOLD}{digest})"
