"""The generated code is that of protos/, and protos/ is what the real Envoy speaks."""

import importlib.util
import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from extproc.envoy.pb import tokenweir_ext_proc_pb2, tokenweir_rate_limit_pb2
from extproc.local.parts import MissingPartError, envoy_binary
from tests.missing import missing

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").glob("*.proto"))
GENERATED = ROOT / "extproc" / "envoy" / "pb"
# Another release of the generator writes its own version into the file, and nothing else.
_VERSION = re.compile(r"^# Protobuf Python Version: .*$|^    \d+,$", re.MULTILINE)

# Our files, and Envoy's files that have the messages of the same names.
OF_ENVOY = {
    tokenweir_ext_proc_pb2: (
        "envoy/service/ext_proc/v3/external_processor.proto",
        "envoy/config/core/v3/base.proto",
        "envoy/type/v3/http_status.proto",
    ),
    tokenweir_rate_limit_pb2: (
        "envoy/service/ratelimit/v3/rls.proto",
        "envoy/extensions/common/ratelimit/v3/ratelimit.proto",
        "envoy/config/core/v3/base.proto",
    ),
}
# An enum that we do not name is an int32 to us: the same on the wire.
OPEN_ENUMS = {("HttpStatus", "code")}

Field = FieldDescriptorProto


# ---------------------------------------------------------------- the generated code


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    if importlib.util.find_spec("grpc_tools") is None:
        missing("grpcio-tools is not installed")
    folder = tmp_path_factory.mktemp("pb")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT / "protos", f"--python_out={folder}"]
    subprocess.run([*command, f"--pyi_out={folder}", *PROTOS], check=True)
    return folder


@pytest.mark.parametrize("name", [f"{proto.stem}_pb2.{kind}" for proto in PROTOS for kind in ("py", "pyi")])
def test_the_generated_code_is_that_of_the_proto_file(generated, name):
    made, kept = ((folder / name).read_text() for folder in (generated, GENERATED))
    assert _VERSION.sub("", made) == _VERSION.sub("", kept), "run `make protos`"


# ---------------------------------------------------------------- what Envoy speaks

# Of FileDescriptorProto, in the order in which a serializer writes them; 2: length-delimited, 0: varint.
_FILE_FIELDS = {
    1: {2},
    2: {2},
    3: {2},
    4: {2},
    5: {2},
    6: {2},
    7: {2},
    8: {2},
    9: {2},
    10: {0, 2},
    11: {0, 2},
    12: {2},
}


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def embedded(binary, name):
    """All descriptors of the file `name` in the program: each is read until its bytes stop making sense."""
    start = b"\n" + bytes([len(name)]) + name.encode()
    found = []
    at = binary.find(start)
    while at >= 0:
        found.append(FileDescriptorProto.FromString(binary[at : end_of_descriptor(binary, at)]))
        at = binary.find(start, at + 1)
    return found


def end_of_descriptor(data, at):
    last = 0
    while True:
        tag, after = varint(data, at)
        number, kind = tag >> 3, tag & 7
        repeated = number in range(3, 8) or number in (10, 11)
        if kind not in _FILE_FIELDS.get(number, ()) or number < last or (number == last and not repeated):
            return at
        value, after = varint(data, after)
        at = after + value if kind == 2 else after
        last = number


@pytest.fixture(scope="module")
def true_messages():
    """Envoy's own messages by our module and their name, as they are in its program: some are in it more than once."""
    try:
        path = envoy_binary()
    except MissingPartError as error:
        missing(str(error))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary:
        files = {name: embedded(binary, name) for names in OF_ENVOY.values() for name in names}
    assert all(files.values()), f"{[name for name, found in files.items() if not found]} are not in {path}"
    messages = {}
    for module, names in OF_ENVOY.items():
        for message in (message for name in names for file in files[name] for message in file.message_type):
            for name, each in with_inner(message):
                messages.setdefault((module, name), []).append(each)
    return messages


def with_inner(message, outer=""):
    """A message and all that are defined inside it, by their names."""
    name = f"{outer}{message.name}"
    yield name, message
    for inner in message.nested_type:
        yield from with_inner(inner, f"{name}.")


def of_ours(module):
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return [found for message in file.message_type for found in with_inner(message)]


OURS = [
    pytest.param(module, name, message, id=f"{module.DESCRIPTOR.package}.{name}")
    for module in OF_ENVOY
    for name, message in of_ours(module)
    if not message.options.map_entry
]


def fields(message):
    return {field.name: field for field in message.field}


def shape(field, message):
    """What counts on the wire; a map is its key and value."""
    type_name = field.type_name.rpartition(".")[2]
    entry = next((n for n in message.nested_type if n.name == type_name and n.options.map_entry), None)
    inner = [shape(each, entry) for each in entry.field] if entry is not None else None
    return (field.name, field.number, field.label, field.type, type_name if inner is None else inner)


@pytest.mark.parametrize(("module", "name", "ours"), OURS)
def test_every_field_of_ours_is_envoys(module, name, ours, true_messages):
    for theirs in true_messages[module, name]:
        for field_name, field in fields(ours).items():
            true = fields(theirs)[field_name]
            if (name, field_name) in OPEN_ENUMS:
                assert (true.type, field.type) == (Field.TYPE_ENUM, Field.TYPE_INT32)
                assert (true.number, true.label) == (field.number, field.label)
                continue
            assert shape(field, ours) == shape(true, theirs)
            assert field.HasField("oneof_index") == true.HasField("oneof_index")
        for enum in ours.enum_type:
            true_enum = next(each for each in theirs.enum_type if each.name == enum.name)
            numbers = {value.name: value.number for value in true_enum.value}
            assert {value.name: value.number for value in enum.value}.items() <= numbers.items()


def test_every_proto_file_is_held_against_envoys():
    assert {module.DESCRIPTOR.name for module in OF_ENVOY} == {proto.name for proto in PROTOS}


@pytest.mark.parametrize(
    ("name", "unknown"),
    [("ProcessingRequest", set()), ("ProcessingResponse", {"streamed_immediate_response"})],
)
def test_kinds_of_message_that_envoy_has_and_we_have_not_are_known(true_messages, name, unknown):
    (theirs,) = true_messages[tokenweir_ext_proc_pb2, name]
    ours = dict(of_ours(tokenweir_ext_proc_pb2))[name]
    assert kinds(theirs) - kinds(ours) == unknown


@pytest.mark.parametrize("name", ["RateLimitRequest", "RateLimitDescriptor", "RateLimitDescriptor.Entry"])
def test_nothing_that_the_rate_limit_filter_can_say_goes_unread(true_messages, name):
    ours = dict(of_ours(tokenweir_rate_limit_pb2))[name]
    for theirs in true_messages[tokenweir_rate_limit_pb2, name]:
        assert fields(theirs).keys() == fields(ours).keys()


def kinds(message):
    return {field.name for field in message.field if field.HasField("oneof_index")}
