from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_UNAVAILABLE: _ClassVar[ModelState]
    MODEL_STATE_DRAINING: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]

class NullValue(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NULL_VALUE_UNSPECIFIED: _ClassVar[NullValue]

class MethodKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_KIND_UNSPECIFIED: _ClassVar[MethodKind]
    METHOD_KIND_UNARY: _ClassVar[MethodKind]
    METHOD_KIND_SERVER_STREAM: _ClassVar[MethodKind]
    METHOD_KIND_BIDIRECTIONAL: _ClassVar[MethodKind]

class TypeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TYPE_KIND_UNSPECIFIED: _ClassVar[TypeKind]
    TYPE_KIND_ANY: _ClassVar[TypeKind]
    TYPE_KIND_NULL: _ClassVar[TypeKind]
    TYPE_KIND_BOOL: _ClassVar[TypeKind]
    TYPE_KIND_INT: _ClassVar[TypeKind]
    TYPE_KIND_FLOAT: _ClassVar[TypeKind]
    TYPE_KIND_STRING: _ClassVar[TypeKind]
    TYPE_KIND_BYTES: _ClassVar[TypeKind]
    TYPE_KIND_LIST: _ClassVar[TypeKind]
    TYPE_KIND_TUPLE: _ClassVar[TypeKind]
    TYPE_KIND_MAP: _ClassVar[TypeKind]
    TYPE_KIND_OBJECT: _ClassVar[TypeKind]
    TYPE_KIND_UNION: _ClassVar[TypeKind]
    TYPE_KIND_CHOICE: _ClassVar[TypeKind]
    TYPE_KIND_TENSOR: _ClassVar[TypeKind]
    TYPE_KIND_IMAGE: _ClassVar[TypeKind]
    TYPE_KIND_AUDIO: _ClassVar[TypeKind]
    TYPE_KIND_VIDEO: _ClassVar[TypeKind]
    TYPE_KIND_TEXT: _ClassVar[TypeKind]
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_UNAVAILABLE: ModelState
MODEL_STATE_DRAINING: ModelState
MODEL_STATE_FAILED: ModelState
NULL_VALUE_UNSPECIFIED: NullValue
METHOD_KIND_UNSPECIFIED: MethodKind
METHOD_KIND_UNARY: MethodKind
METHOD_KIND_SERVER_STREAM: MethodKind
METHOD_KIND_BIDIRECTIONAL: MethodKind
TYPE_KIND_UNSPECIFIED: TypeKind
TYPE_KIND_ANY: TypeKind
TYPE_KIND_NULL: TypeKind
TYPE_KIND_BOOL: TypeKind
TYPE_KIND_INT: TypeKind
TYPE_KIND_FLOAT: TypeKind
TYPE_KIND_STRING: TypeKind
TYPE_KIND_BYTES: TypeKind
TYPE_KIND_LIST: TypeKind
TYPE_KIND_TUPLE: TypeKind
TYPE_KIND_MAP: TypeKind
TYPE_KIND_OBJECT: TypeKind
TYPE_KIND_UNION: TypeKind
TYPE_KIND_CHOICE: TypeKind
TYPE_KIND_TENSOR: TypeKind
TYPE_KIND_IMAGE: TypeKind
TYPE_KIND_AUDIO: TypeKind
TYPE_KIND_VIDEO: TypeKind
TYPE_KIND_TEXT: TypeKind

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("model_id", "description", "methods", "state", "modelkit_version", "engine")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODELKIT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    description: str
    methods: _containers.RepeatedCompositeFieldContainer[Method]
    state: ModelState
    modelkit_version: str
    engine: str
    def __init__(self, model_id: _Optional[str] = ..., description: _Optional[str] = ..., methods: _Optional[_Iterable[_Union[Method, _Mapping]]] = ..., state: _Optional[_Union[ModelState, str]] = ..., modelkit_version: _Optional[str] = ..., engine: _Optional[str] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("method", "arguments", "metadata")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    method: str
    arguments: _containers.MessageMap[str, Value]
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, method: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Value]] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("result", "usage", "metadata", "request_id", "finish_reason")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RESULT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    result: Value
    usage: Usage
    metadata: _containers.ScalarMap[str, str]
    request_id: str
    finish_reason: str
    def __init__(self, result: _Optional[_Union[Value, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("method", "arguments", "metadata")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    method: str
    arguments: _containers.MessageMap[str, Value]
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, method: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Value]] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("items", "usage", "metadata", "request_id", "finish_reason")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Value]
    usage: Usage
    metadata: _containers.ScalarMap[str, str]
    request_id: str
    finish_reason: str
    def __init__(self, items: _Optional[_Iterable[_Union[Value, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("start", "items", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: StreamStart
    items: _containers.RepeatedCompositeFieldContainer[Value]
    end: bool
    def __init__(self, start: _Optional[_Union[StreamStart, _Mapping]] = ..., items: _Optional[_Iterable[_Union[Value, _Mapping]]] = ..., end: bool = ...) -> None: ...

class StreamStart(_message.Message):
    __slots__ = ("method", "arguments", "metadata")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    method: str
    arguments: _containers.MessageMap[str, Value]
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, method: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Value]] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("items", "usage", "metadata", "request_id", "finish_reason")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Value]
    usage: Usage
    metadata: _containers.ScalarMap[str, str]
    request_id: str
    finish_reason: str
    def __init__(self, items: _Optional[_Iterable[_Union[Value, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "output_tokens", "cached_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("null_value", "bool_value", "int_value", "float_value", "string_value", "bytes_value", "list_value", "map_value", "tensor_value", "image_value", "audio_value", "video_value", "text_value")
    NULL_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLOAT_VALUE_FIELD_NUMBER: _ClassVar[int]
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    BYTES_VALUE_FIELD_NUMBER: _ClassVar[int]
    LIST_VALUE_FIELD_NUMBER: _ClassVar[int]
    MAP_VALUE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_VALUE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_VALUE_FIELD_NUMBER: _ClassVar[int]
    AUDIO_VALUE_FIELD_NUMBER: _ClassVar[int]
    VIDEO_VALUE_FIELD_NUMBER: _ClassVar[int]
    TEXT_VALUE_FIELD_NUMBER: _ClassVar[int]
    null_value: NullValue
    bool_value: bool
    int_value: int
    float_value: float
    string_value: str
    bytes_value: bytes
    list_value: ListValue
    map_value: MapValue
    tensor_value: Tensor
    image_value: Image
    audio_value: Audio
    video_value: Video
    text_value: Text
    def __init__(self, null_value: _Optional[_Union[NullValue, str]] = ..., bool_value: bool = ..., int_value: _Optional[int] = ..., float_value: _Optional[float] = ..., string_value: _Optional[str] = ..., bytes_value: _Optional[bytes] = ..., list_value: _Optional[_Union[ListValue, _Mapping]] = ..., map_value: _Optional[_Union[MapValue, _Mapping]] = ..., tensor_value: _Optional[_Union[Tensor, _Mapping]] = ..., image_value: _Optional[_Union[Image, _Mapping]] = ..., audio_value: _Optional[_Union[Audio, _Mapping]] = ..., video_value: _Optional[_Union[Video, _Mapping]] = ..., text_value: _Optional[_Union[Text, _Mapping]] = ...) -> None: ...

class ListValue(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, items: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class MapValue(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[MapEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[MapEntry, _Mapping]]] = ...) -> None: ...

class MapEntry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: Value
    def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("shape", "dtype", "data")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("data", "media_type")
    DATA_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    media_type: str
    def __init__(self, data: _Optional[bytes] = ..., media_type: _Optional[str] = ...) -> None: ...

class Audio(_message.Message):
    __slots__ = ("data", "media_type", "sample_rate_hz")
    DATA_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    media_type: str
    sample_rate_hz: int
    def __init__(self, data: _Optional[bytes] = ..., media_type: _Optional[str] = ..., sample_rate_hz: _Optional[int] = ...) -> None: ...

class Video(_message.Message):
    __slots__ = ("data", "media_type")
    DATA_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    media_type: str
    def __init__(self, data: _Optional[bytes] = ..., media_type: _Optional[str] = ...) -> None: ...

class Text(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Method(_message.Message):
    __slots__ = ("name", "kind", "description", "arguments", "result")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: MethodKind
    description: str
    arguments: _containers.RepeatedCompositeFieldContainer[Field]
    result: Type
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[MethodKind, str]] = ..., description: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., result: _Optional[_Union[Type, _Mapping]] = ...) -> None: ...

class Field(_message.Message):
    __slots__ = ("name", "type", "description", "required", "default", "limits", "streamed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    STREAMED_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: Type
    description: str
    required: bool
    default: Value
    limits: Limits
    streamed: bool
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[Type, _Mapping]] = ..., description: _Optional[str] = ..., required: bool = ..., default: _Optional[_Union[Value, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., streamed: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("minimum", "maximum", "exclusive_minimum", "exclusive_maximum", "multiple_of", "min_length", "max_length", "pattern", "choices")
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_MINIMUM_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    MULTIPLE_OF_FIELD_NUMBER: _ClassVar[int]
    MIN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    minimum: Value
    maximum: Value
    exclusive_minimum: Value
    exclusive_maximum: Value
    multiple_of: Value
    min_length: int
    max_length: int
    pattern: str
    choices: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, minimum: _Optional[_Union[Value, _Mapping]] = ..., maximum: _Optional[_Union[Value, _Mapping]] = ..., exclusive_minimum: _Optional[_Union[Value, _Mapping]] = ..., exclusive_maximum: _Optional[_Union[Value, _Mapping]] = ..., multiple_of: _Optional[_Union[Value, _Mapping]] = ..., min_length: _Optional[int] = ..., max_length: _Optional[int] = ..., pattern: _Optional[str] = ..., choices: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Type(_message.Message):
    __slots__ = ("kind", "args", "name", "fields", "choices", "dtype")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    kind: TypeKind
    args: _containers.RepeatedCompositeFieldContainer[Type]
    name: str
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    choices: _containers.RepeatedCompositeFieldContainer[Value]
    dtype: str
    def __init__(self, kind: _Optional[_Union[TypeKind, str]] = ..., args: _Optional[_Iterable[_Union[Type, _Mapping]]] = ..., name: _Optional[str] = ..., fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., choices: _Optional[_Iterable[_Union[Value, _Mapping]]] = ..., dtype: _Optional[str] = ...) -> None: ...
