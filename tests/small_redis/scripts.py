"""Run scripts: Lua 5.1 with `redis.call`, `redis.error_reply` and `cmsgpack.unpack`, as in a server."""

from collections.abc import Callable
from functools import lru_cache

import msgspec

from .replies import Scored, Status, flat, number
from .values import RefusedError

# A reply comes as one value, or as the items of a list. lupa itself needs `debug`.
_AROUND = b"""
local call, unpacked = ...
local raw, world = rawset, _G
local function answer(is_list, ...)
  if is_list then return {...} end
  return (...)
end
redis = {
  call = function(...) return answer(call(...)) end,
  error_reply = function(text) return {err = text} end,
  status_reply = function(text) return {ok = text} end,
}
cmsgpack = {unpack = unpacked}
for _, name in ipairs({'os', 'io', 'python', 'package', 'require', 'dofile', 'loadfile'}) do
  world[name] = nil
end
setmetatable(world, {
  __newindex = function(_, name) error('Attempted to create the global variable ' .. tostring(name), 2) end,
  __index = function(_, name) error('There is no global variable ' .. tostring(name), 2) end,
})
return function(script, keys, arguments)
  raw(world, 'KEYS', keys)
  raw(world, 'ARGV', arguments)
  return script()
end
"""


class Lua:
    """Hold the interpreter. It is there once for all servers of this process: scripts keep nothing between runs."""

    def __init__(self) -> None:
        import lupa.lua51 as lupa

        self._failure = lupa.LuaError
        self._type = lupa.lua_type
        self._lua = lupa.LuaRuntime(encoding=None, unpack_returned_tuples=True, register_eval=False)
        self._call: Callable[[list[bytes]], object] = lambda words: None
        self._compile = self._lua.compile
        self._run = self._compile(_AROUND)(self._called, self._unpacked)
        self.compiled = lru_cache(500)(self._compiled)

    def _compiled(self, text: bytes) -> object:
        """Return the script as a function. Raise RefusedError if it has an error."""
        # The first line names the language, which is no Lua.
        try:
            return self._compile(b"--" + text if text.startswith(b"#!") else text)
        except self._failure as error:
            raise RefusedError(f"ERR Error compiling script: {error}") from None

    def run(
        self, text: bytes, keys: list[bytes], args: list[bytes], call: Callable[[list[bytes]], object]
    ) -> object:
        """Return the reply of a script. `call` carries out its commands. Raise RefusedError if the reply is an error."""
        self._call = call
        try:
            found = self._run(self.compiled(text), self._lua.table_from(keys), self._lua.table_from(args))
        except self._failure as error:
            raise RefusedError(f"ERR {error}") from None
        return self._reply(found)

    def _called(self, *words: object) -> object:
        reply = self._call([_word(each) for each in words])
        if type(reply) in (dict, Scored):
            reply = flat(list(reply.items()) if type(reply) is dict else reply)
        if isinstance(reply, list):
            return True, *[self._value(each) for each in reply]
        return False, self._value(reply)

    def _value(self, reply: object) -> object:
        """Return a reply as a script sees it."""
        if reply is None:
            return False
        if isinstance(reply, Status):
            return self._lua.table_from({b"ok": bytes(reply)})
        if isinstance(reply, list):
            return self._lua.table_from([self._value(each) for each in reply])
        return number(reply) if isinstance(reply, float) else reply

    def _unpacked(self, message: bytes) -> object:
        """Return what MessagePack says, as a script sees it."""
        return self._told(msgspec.msgpack.decode(message))

    def _told(self, value: object) -> object:
        if isinstance(value, list):
            return self._lua.table_from([self._told(each) for each in value])
        return value.encode() if isinstance(value, str) else value  # scripts know no texts but bytes

    def _reply(self, found: object) -> object:
        """Return what a script returned, as a reply."""
        if isinstance(found, bool):
            return 1 if found else None
        if isinstance(found, float):
            return int(found)
        if found is None or isinstance(found, int | bytes):
            return found
        if self._type(found) != "table":
            return None
        if (error := found[b"err"]) is not None:
            raise RefusedError(error.removeprefix(b"-").decode())
        if (status := found[b"ok"]) is not None:
            return Status(status)
        items, i = [], 1
        while (item := found[i]) is not None:
            items.append(self._reply(item))
            i += 1
        return items


def _word(value: object) -> bytes:
    if type(value) is bytes:
        return value
    if type(value) is int:
        return b"%d" % value
    if type(value) is float:
        return b"%d" % value if value.is_integer() and abs(value) < 2**63 else b"%.17g" % value
    raise RefusedError("ERR Lua redis lib command arguments must be strings or integers")


@lru_cache(1)
def lua() -> Lua:
    """Return the interpreter of this process. Raise ImportError if the package `lupa` is missing."""
    return Lua()
