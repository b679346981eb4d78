import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteRequest(_message.Message):
    __slots__ = ("model", "wait_seconds", "session", "prompt_prefix")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PREFIX_FIELD_NUMBER: _ClassVar[int]
    model: str
    wait_seconds: float
    session: str
    prompt_prefix: str
    def __init__(self, model: _Optional[str] = ..., wait_seconds: _Optional[float] = ..., session: _Optional[str] = ..., prompt_prefix: _Optional[str] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease", "node", "model", "replica", "replica_index", "address", "revision", "expires_at", "choice")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    REPLICA_INDEX_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    node: str
    model: str
    replica: str
    replica_index: int
    address: str
    revision: str
    expires_at: _timestamp_pb2.Timestamp
    choice: Choice
    def __init__(self, lease: _Optional[str] = ..., node: _Optional[str] = ..., model: _Optional[str] = ..., replica: _Optional[str] = ..., replica_index: _Optional[int] = ..., address: _Optional[str] = ..., revision: _Optional[str] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., choice: _Optional[_Union[Choice, _Mapping]] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("rule", "why")
    RULE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    rule: str
    why: str
    def __init__(self, rule: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    def __init__(self, lease: _Optional[str] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: _Optional[bool] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    def __init__(self, lease: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after", "model")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    after: int
    model: str
    def __init__(self, after: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("sequence", "time", "model", "replica", "changed")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    model: str
    replica: ReplicaChange
    changed: ModelChange
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ..., replica: _Optional[_Union[ReplicaChange, _Mapping]] = ..., changed: _Optional[_Union[ModelChange, _Mapping]] = ...) -> None: ...

class ReplicaChange(_message.Message):
    __slots__ = ("replica", "state", "node", "replica_index", "revision", "reason", "detail")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ReplicaChange.State]
        STATE_PLACED: _ClassVar[ReplicaChange.State]
        STATE_READY: _ClassVar[ReplicaChange.State]
        STATE_DRAINING: _ClassVar[ReplicaChange.State]
        STATE_UNLOADED: _ClassVar[ReplicaChange.State]
        STATE_UNREACHABLE: _ClassVar[ReplicaChange.State]
    STATE_UNSPECIFIED: ReplicaChange.State
    STATE_PLACED: ReplicaChange.State
    STATE_READY: ReplicaChange.State
    STATE_DRAINING: ReplicaChange.State
    STATE_UNLOADED: ReplicaChange.State
    STATE_UNREACHABLE: ReplicaChange.State
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_INDEX_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    replica: str
    state: ReplicaChange.State
    node: str
    replica_index: int
    revision: str
    reason: str
    detail: str
    def __init__(self, replica: _Optional[str] = ..., state: _Optional[_Union[ReplicaChange.State, str]] = ..., node: _Optional[str] = ..., replica_index: _Optional[int] = ..., revision: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class ModelChange(_message.Message):
    __slots__ = ("type", "revision")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    type: str
    revision: str
    def __init__(self, type: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("code", "detail", "field", "retryable", "retry_after_seconds", "extra_json")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    field: str
    retryable: bool
    retry_after_seconds: float
    extra_json: str
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ..., field: _Optional[str] = ..., retryable: _Optional[bool] = ..., retry_after_seconds: _Optional[float] = ..., extra_json: _Optional[str] = ...) -> None: ...
