"""The one entity: an asset."""

from __future__ import annotations

from feast import Entity, ValueType


def asset() -> Entity:
    """A traded asset; ``entity_key`` is its symbol in its market."""
    return Entity(
        name="asset", join_keys=["entity_key"], value_type=ValueType.STRING, description="A traded asset of the market"
    )
