"""Typed identifiers. A name is what people choose; an id is what modelyard makes, unique for ever."""

from typing import NewType

NodeName = NewType("NodeName", str)
ModelName = NewType("ModelName", str)
LabelKey = NewType("LabelKey", str)

ReplicaId = NewType("ReplicaId", str)
ReservationId = NewType("ReservationId", str)
IncarnationId = NewType("IncarnationId", str)
LeaseId = NewType("LeaseId", str)
CommandId = NewType("CommandId", str)
EventId = NewType("EventId", str)
Revision = NewType("Revision", str)

NAME_LENGTH_MAX = 253
"""Characters in a node, model or label name: the length of a DNS name, which every peer's names fit."""
