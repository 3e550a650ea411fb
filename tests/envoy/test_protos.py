"""The generated code is that of protos/, and protos/ is what the real Envoy speaks."""

import importlib.util
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from extproc.envoy.pb import tokenweir_ext_proc_pb2 as pb
from extproc.local.parts import MissingPartError, envoy_binary

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "protos" / "tokenweir_ext_proc.proto"
GENERATED = ROOT / "extproc" / "envoy" / "pb"
# Another release of the generator writes its own version into the file, and nothing else.
_VERSION = re.compile(r"^# Protobuf Python Version: .*$|^    \d+,$", re.MULTILINE)

OF_ENVOY = (
    "envoy/service/ext_proc/v3/external_processor.proto",
    "envoy/config/core/v3/base.proto",
    "envoy/type/v3/http_status.proto",
)
# An enum that we do not name is an int32 to us: the same on the wire.
OPEN_ENUMS = {("HttpStatus", "code")}

Field = FieldDescriptorProto


def missing(reason):
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


# ---------------------------------------------------------------- the generated code


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    if importlib.util.find_spec("grpc_tools") is None:
        missing("grpcio-tools is not installed")
    folder = tmp_path_factory.mktemp("pb")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", PROTO.parent, f"--python_out={folder}"]
    subprocess.run([*command, f"--pyi_out={folder}", PROTO], check=True)
    return folder


@pytest.mark.parametrize("name", ["tokenweir_ext_proc_pb2.py", "tokenweir_ext_proc_pb2.pyi"])
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
    """Envoy's own messages by name, as they are in its program: some files are in it more than once."""
    try:
        path = envoy_binary()
    except MissingPartError as error:
        missing(str(error))
    messages = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary:
        for name in OF_ENVOY:
            files = embedded(binary, name)
            assert files, f"{name} is not in {path}"
            for message in (message for file in files for message in file.message_type):
                messages.setdefault(message.name, []).append(message)
    return messages


OURS = FileDescriptorProto()
pb.DESCRIPTOR.CopyToProto(OURS)


def fields(message):
    return {field.name: field for field in message.field}


def shape(field, message):
    """What counts on the wire; a map is its key and value."""
    type_name = field.type_name.rpartition(".")[2]
    entry = next((n for n in message.nested_type if n.name == type_name and n.options.map_entry), None)
    inner = [shape(each, entry) for each in entry.field] if entry is not None else None
    return (field.name, field.number, field.label, field.type, type_name if inner is None else inner)


@pytest.mark.parametrize("ours", OURS.message_type, ids=lambda message: message.name)
def test_every_field_of_ours_is_envoys(ours, true_messages):
    for theirs in true_messages[ours.name]:
        for name, field in fields(ours).items():
            true = fields(theirs)[name]
            if (ours.name, name) in OPEN_ENUMS:
                assert (true.type, field.type) == (Field.TYPE_ENUM, Field.TYPE_INT32)
                assert (true.number, true.label) == (field.number, field.label)
                continue
            assert shape(field, ours) == shape(true, theirs)
            assert field.HasField("oneof_index") == true.HasField("oneof_index")
        for enum in ours.enum_type:
            true_enum = next(each for each in theirs.enum_type if each.name == enum.name)
            numbers = {value.name: value.number for value in true_enum.value}
            assert {value.name: value.number for value in enum.value}.items() <= numbers.items()


@pytest.mark.parametrize(
    ("name", "unknown"),
    [("ProcessingRequest", set()), ("ProcessingResponse", {"streamed_immediate_response"})],
)
def test_kinds_of_message_that_envoy_has_and_we_have_not_are_known(true_messages, name, unknown):
    (theirs,) = true_messages[name]
    ours = next(message for message in OURS.message_type if message.name == name)
    assert kinds(theirs) - kinds(ours) == unknown


def kinds(message):
    return {field.name for field in message.field if field.HasField("oneof_index")}
