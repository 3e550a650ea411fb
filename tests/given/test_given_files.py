"""Files that a person names: regular ones within a bound; anything else is refused at once, with the fix."""

import os
import socket

import pytest

from extproc.given.files import GivenFileError, check, lines, opened, read


def problem(name, most=1 << 20):
    with pytest.raises(GivenFileError) as error:
        read(name, most)
    return str(error.value)


def test_a_regular_file_is_read_up_to_its_bound(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 2048)
    assert read(file, 2048) == b"x" * 2048
    assert problem(file, 2047) == "larger than 1 KiB: split it, or name another file"
    check(file, 2048)
    with pytest.raises(GivenFileError, match="larger than 1 KiB"):
        check(file, 2047)


def test_a_pipe_that_nobody_writes_to_is_refused_and_not_waited_for(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert problem(fifo) == "can't be read: it is a pipe; name a regular file"


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/random", "/dev/null", "/dev/tty"])
def test_a_device_is_refused(name):
    assert problem(name).startswith("can't be read: ")


def test_a_socket_a_folder_and_a_file_that_is_missing_are_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        assert problem(tmp_path / "s").startswith("can't be read: ")
    assert problem(tmp_path) == "can't be read: Is a directory"
    assert problem(tmp_path / "none") == "can't be read: No such file or directory"
    assert problem("a\0b") == "can't be read: embedded null byte"


def test_a_file_without_line_ends_takes_no_more_memory_than_a_line_may_have(tmp_path):
    file = tmp_path / "sparse"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with opened(file) as found, pytest.raises(GivenFileError, match="has a line of more than 1 KiB"):
        list(lines(found, 1024))
    assert problem(file).startswith("larger than 1 MiB")
