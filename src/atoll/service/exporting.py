"""The disks of a run or a restore point as NBD exports, for software that reads them itself."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from atoll.island.served import ServedDisk, ServedVm
from atoll.model.errors import NotFoundInPointError
from atoll.nbd.contexts import Context, changed_contexts
from atoll.nbd.exports import Export


@contextmanager
def vm_exports(
    vms: Sequence[ServedVm], vm: str | None = None, disk: str | None = None
) -> Iterator[list[Export]]:
    """`VM/disk1` and so on, readable while the block lasts; of one VM or disk only if asked.

    `vm` is a name or instance UUID; `disk` a label, VMDK name or number, and a disk keeps the
    number that it has in its VM. Disks that know what changed offer it as contexts.
    NotFoundInPointError when there is no such VM or disk.
    """
    chosen = [one for one in vms if vm is None or vm in (one.name, one.instance_uuid)]
    if not chosen:
        known = ", ".join(sorted(one.name for one in vms))
        raise NotFoundInPointError(f"There is no VM {vm} in it, only {known}.")
    with ExitStack() as stack:
        exports = []
        for one in chosen:
            for number, each in enumerate(one.disks, 1):
                if disk is None or disk in _names(each, number):
                    reader = each.open()
                    stack.callback(reader.close)
                    exports.append(
                        Export(
                            name=f"{one.name}/disk{number}",
                            reader=reader,
                            description=f"{each.label} of {one.name}@{one.run}",
                            contexts=_changed(one, each, reader.size_bytes),
                            key=each.key,
                        )
                    )
        if not exports:
            has = ", ".join(
                f"{number} = {each.label}"
                for one in chosen
                for number, each in enumerate(one.disks, 1)
            )
            raise NotFoundInPointError(f"There is no disk {disk} in it; name one of these: {has}.")
        yield exports


def _names(disk: ServedDisk, number: int) -> tuple[str, ...]:
    return disk.label, disk.path, disk.file, str(number)


def _changed(vm: ServedVm, disk: ServedDisk, size_bytes: int) -> tuple[Context, ...]:
    if disk.changed is None:
        return ()
    return changed_contexts(vm.since, size_bytes, disk.changed())
