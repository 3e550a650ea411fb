-- The design that Tokenweir is compared with: one HTTP call before each request, one after it, to a service that counts.
-- An answer in JSON is held to read its usage. A stream passes as it comes, and its tokens are not counted.

local function ask(handle, path, body)
  return handle:httpCall("meter", {
    [":method"] = "POST",
    [":path"] = path,
    [":authority"] = "meter",
    ["content-type"] = "application/json",
  }, body, 1000)
end

local function tokens(text, name)
  return string.match(text, '"' .. name .. '":%s*(%d+)') or "0"
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local account = headers:get("oc_sa") or "anonymous"
  local address = string.match(headers:get("x-forwarded-for") or "", "^[^,]+") or ""
  local path = headers:get(":path")
  local caller = '{"serviceAccount":"' .. account .. '","clientIP":"' .. address .. '","path":"' .. path .. '"'
  local answer_headers, answer = ask(handle, "/checkLimit", caller .. "}")
  if answer_headers[":status"] == "400" then
    handle:respond({[":status"] = "400"}, answer)
    return
  end
  handle:streamInfo():dynamicMetadata():set("meter", "caller", caller)
end

function envoy_on_response(handle)
  local kept = handle:streamInfo():dynamicMetadata():get("meter")
  if kept == nil then
    return
  end
  local text = ""
  local kind = handle:headers():get("content-type") or ""
  if string.sub(kind, 1, 17) ~= "text/event-stream" then
    local body = handle:body()
    if body ~= nil then
      text = body:getBytes(0, body:length())
    end
  end
  ask(handle, "/insert", kept["caller"]
    .. ',"tokenInput":' .. tokens(text, "prompt_tokens")
    .. ',"tokenOutput":' .. tokens(text, "completion_tokens")
    .. ',"tokenTotal":' .. tokens(text, "total_tokens") .. "}")
end
