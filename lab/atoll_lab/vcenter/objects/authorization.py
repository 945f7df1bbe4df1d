"""The AuthorizationManager: roles, and who has which where.

A permission nearer to an object replaces what its parents say of the same user, as in vCenter.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.state import PermissionState, RoleState

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site

ADMIN = -1
_FIRST_OWN_ROLE = 1000


class AuthorizationManager(Managed):
    """Keeps roles and permissions. The one account is administrator where nothing else is said."""

    kind = vim.AuthorizationManager

    @exposes("roleList")
    def roles(self) -> list[Any]:
        """The administrator's role and those that were added."""
        return [
            vim.AuthorizationManager.Role(
                roleId=ADMIN,
                system=True,
                name="Admin",
                info=vim.Description(label="Administrator", summary="Full access rights"),
                privilege=[],
            ),
            *(
                vim.AuthorizationManager.Role(
                    roleId=role.number,
                    system=False,
                    name=role.name,
                    info=vim.Description(label=role.name, summary=role.name),
                    privilege=role.privileges,
                )
                for role in self.site.state.roles
            ),
        ]

    @answers("AddAuthorizationRole")
    def add_role(self, call: Call, name: str, privIds: list[str] | None = None) -> int:
        """A new role; AlreadyExists."""
        with self.site.change():
            if any(role.name == name for role in self.site.state.roles):
                raise vim.fault.AlreadyExists(msg=f"There is a role {name}", name=name)
            number = max([_FIRST_OWN_ROLE, *(role.number for role in self.site.state.roles)]) + 1
            self.site.state.roles.append(RoleState(number, name, sorted(privIds or [])))
            return number

    @answers("UpdateAuthorizationRole")
    def update_role(
        self, call: Call, roleId: int, newName: str, privIds: list[str] | None = None
    ) -> None:
        """Change a role; NotFound."""
        with self.site.change():
            role = self._role(roleId)
            role.name, role.privileges = newName, sorted(privIds or [])

    @answers("SetEntityPermissions")
    def set_permissions(self, call: Call, entity: Any, permission: list[Any]) -> None:
        """Say what users may do at an object, each in place of what was said of the same user."""
        with self.site.change():
            self.site.registry.require(entity._moId)
            for each in permission:
                if each.roleId != ADMIN:
                    self._role(each.roleId)
            who = {(each.principal, each.group) for each in permission}
            kept = [
                known
                for known in self.site.state.permissions
                if known.entity != entity._moId or (known.principal, known.group) not in who
            ]
            kept += [
                PermissionState(
                    entity._moId, each.principal, each.group, each.roleId, each.propagate
                )
                for each in permission
            ]
            self.site.state.permissions = kept

    @answers("RetrieveEntityPermissions")
    def entity_permissions(self, call: Call, entity: Any, inherited: bool) -> list[Any]:
        """What is said at an object, and with `inherited` at those above where it counts below."""
        at = self.site.registry.require(entity._moId)
        entities = [at, *(_above(at) if inherited else ())]
        return [
            _permission(known)
            for managed in entities
            for known in self.site.state.permissions
            if known.entity == managed.moid and (managed is at or known.propagate)
        ]

    @answers("RetrieveAllPermissions")
    def all_permissions(self, call: Call) -> list[Any]:
        """Everything that is said anywhere."""
        return [_permission(known) for known in self.site.state.permissions]

    def _role(self, number: int) -> RoleState:
        for role in self.site.state.roles:
            if role.number == number:
                return role
        raise vim.fault.NotFound(msg=f"There is no role {number}")


def require_privilege(site: "Site", user: str, at: Managed, privilege: str) -> None:
    """NoPermission unless the user's role at an object, or the nearest above, has the privilege."""
    for managed in (at, *_above(at)):
        for known in site.state.permissions:
            counts = managed is at or known.propagate
            if known.entity != managed.moid or known.principal != user or not counts:
                continue
            if known.role == ADMIN or any(
                role.number == known.role and privilege in role.privileges
                for role in site.state.roles
            ):
                return
            raise vim.fault.NoPermission(
                msg="Permission to perform this operation was denied.",
                object=at.ref,
                privilegeId=privilege,
            )


def _above(managed: Managed) -> Iterator[Managed]:
    while (parent := managed.read("parent")) is not None:
        managed = managed.site.registry.require(parent._moId)
        yield managed


def _permission(known: PermissionState) -> Any:
    return vim.AuthorizationManager.Permission(
        entity=vim.ManagedEntity(known.entity),
        principal=known.principal,
        group=known.group,
        roleId=known.role,
        propagate=known.propagate,
    )
