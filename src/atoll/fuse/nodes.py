"""Which nodes the kernel knows by number, kept exactly as long as it does."""

import itertools
import threading
from collections.abc import Hashable

from atoll.fuse.interface import Node
from atoll.fuse.protocol import ROOT_ID


class NodeTable:
    """Numbers of nodes, never used again, and how many answers about each the kernel remembers."""

    def __init__(self, root: Node) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[Hashable, int] = {root.key: ROOT_ID}
        self._nodes: dict[int, Node] = {ROOT_ID: root}
        self._counts: dict[int, int] = {ROOT_ID: 1}
        self._next = itertools.count(ROOT_ID + 1)

    def __len__(self) -> int:
        return len(self._nodes)

    def node(self, number: int) -> Node | None:
        """The node of a number."""
        return self._nodes.get(number)

    def remember(self, node: Node) -> int:
        """The number of a node, in one more answer."""
        with self._lock:
            number = self._numbers.get(node.key)
            if number is None:
                number = self._numbers[node.key] = next(self._next)
                self._nodes[number] = node
                self._counts[number] = 0
            self._counts[number] += 1
            return number

    def forget(self, number: int, answers: int) -> None:
        """The kernel has forgotten so many answers about a node."""
        with self._lock:
            if number == ROOT_ID or number not in self._counts:
                return
            self._counts[number] -= answers
            if self._counts[number] <= 0:
                del self._counts[number]
                del self._numbers[self._nodes.pop(number).key]
