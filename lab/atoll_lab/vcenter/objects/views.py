"""Container views: what lies below an object, kept current."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site

_numbers = itertools.count(1)


class ContainerView(Managed):
    """The objects of some kinds below a container, as they are at each look."""

    kind = vim.view.ContainerView

    def __init__(
        self,
        site: "Site",
        session: str,
        container: Managed,
        kinds: tuple[Any, ...],
        recursive: bool,
    ) -> None:
        super().__init__(site, f"session-view-{next(_numbers)}", session)
        self._container = container
        self._kinds = kinds
        self._recursive = recursive

    @exposes("view")
    def view(self) -> list[Any]:
        """References of the objects."""
        found = _below(self._container, self._recursive)
        return [item.ref for item in found if not self._kinds or issubclass(item.kind, self._kinds)]

    @exposes("container")
    def container(self) -> Any:
        """Where it looks."""
        return self._container.ref

    @exposes("type")
    def kinds(self) -> list[Any]:
        """What it looks for."""
        return list(self._kinds)

    @exposes("recursive")
    def recursive(self) -> bool:
        """How deep it looks."""
        return self._recursive

    @answers("DestroyView")
    def destroy(self, call: Call) -> None:
        """Forget the view."""
        self.site.registry.remove(self.moid)


class ViewManager(Managed):
    """Makes views."""

    kind = vim.view.ViewManager

    @answers("CreateContainerView")
    def create(
        self, call: Call, container: Any, recursive: bool, type: list[Any] | None = None
    ) -> Any:
        """A view of what lies below `container`; of every kind if `type` is not given."""
        base = self.site.registry.require(container._moId)
        view = ContainerView(self.site, call.session.key, base, tuple(type or ()), recursive)
        self.site.registry.add(view)
        return view.ref


def _below(container: Managed, recursive: bool) -> Iterator[Managed]:
    for child in container.children():
        yield child
        if recursive:
            yield from _below(child, recursive)
