"""What every managed object is: properties and methods under their vSphere names."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pyVmomi import VmomiSupport, vmodl

if TYPE_CHECKING:
    from atoll_lab.vcenter.sessions import Session
    from atoll_lab.vcenter.site import Site

_PROPERTY = "_vsphere_property"
_METHOD = "_vsphere_method"
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Call:
    """Who calls, and in which API version."""

    session: "Session"
    version: str


def exposes(name: str) -> Callable[[_F], _F]:
    """Mark a method of a Managed as the reader of the vSphere property `name`."""

    def mark(function: _F) -> _F:
        setattr(function, _PROPERTY, name)
        return function

    return mark


def answers(name: str) -> Callable[[_F], _F]:
    """Mark a method of a Managed as the vSphere method `name`, arguments by their vSphere names."""

    def mark(function: _F) -> _F:
        setattr(function, _METHOD, name)
        return function

    return mark


class Managed:
    """A managed object. Subclasses set `kind` and mark methods with `exposes` and `answers`."""

    kind: ClassVar[Any] = VmomiSupport.ManagedObject
    _readers: ClassVar[dict[str, str]] = {}
    _methods: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._readers = dict(cls._readers)
        cls._methods = dict(cls._methods)
        for name, member in vars(cls).items():
            if exposed := getattr(member, _PROPERTY, None):
                cls._readers[exposed] = name
            if answered := getattr(member, _METHOD, None):
                cls._methods[answered] = name

    def __init__(self, site: "Site", moid: str, session: str | None = None) -> None:
        """`session` is the key of the session it ends with and that alone may use it."""
        self.site = site
        self.moid = moid
        self.session = session

    @property
    def ref(self) -> Any:
        """The reference clients get."""
        return self.kind(self.moid)

    @property
    def display_name(self) -> str:
        """What fault rules and messages call it."""
        return self.moid

    def children(self) -> Iterable["Managed"]:
        """What lies directly below in the inventory."""
        return ()

    def read(self, name: str) -> Any:
        """A property's value, None when unset.

        vmodl InvalidProperty when the kind has no such property; a property
        the kind has and the simulator does not know is unset.
        """
        if reader := self._readers.get(name):
            return getattr(self, reader)()
        try:
            self.kind._GetPropertyInfo(name)
        except AttributeError as error:
            raise vmodl.query.InvalidProperty(
                msg=f"{self.kind.__name__} has no property {name}", name=name
            ) from error
        return None

    def stamp(self) -> Any:
        """What is equal as long as every property is, None where that cannot be told cheaply."""
        return None

    def property_names(self) -> tuple[str, ...]:
        """The properties the simulator knows."""
        return tuple(self._readers)

    def invoke(self, call: Call, method: str, arguments: dict[str, Any]) -> Any:
        """Run a method; vmodl NotImplemented where the simulator has none."""
        name = self._methods.get(method)
        if name is None:
            raise vmodl.fault.NotImplemented(
                msg=f"The simulator's {self.kind.__name__} does not answer {method}"
            )
        return getattr(self, name)(call, **arguments)
