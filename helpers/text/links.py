"""Links: what belongs together because it shares a key, directly or through others."""

from collections.abc import Sequence


def linked_groups(keys: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Group items, by index, so that two which share a key stand in one group, and so do the friends of friends.

    keys: of each item, at least one. The name of a group is one of its keys. Source: Tarjan 1975, disjoint sets.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:  # the key that stands for all items linked with this one
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for first, *others in keys:
        for key in others:
            parent[root(key)] = root(first)
    groups: dict[str, list[int]] = {}
    for index, linked in enumerate(keys):
        groups.setdefault(root(linked[0]), []).append(index)
    return groups
