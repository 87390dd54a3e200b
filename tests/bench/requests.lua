-- The requests of `tests.bench.generator.requests`, for wrk; prints `Measured` as JSON at the end.
-- Arguments: share of posts, users, prefix of their names, bytes of a text, seed, 1 for in turn,
-- and a token, or nothing.

local posts, reads = {}, {}
local share, users, in_turn
local number = 0

function init(args)
  share, users, in_turn = tonumber(args[1]), tonumber(args[2]), args[6] == "1"
  math.randomseed(tonumber(args[5]))
  local text = string.rep("x", tonumber(args[4]))
  local headers = { ["Content-Type"] = "application/json" }
  local no_body = {}
  if args[7] ~= nil and args[7] ~= "" then
    headers["Authorization"] = "Bearer " .. args[7]
    no_body["Authorization"] = headers["Authorization"]
  end
  for user = 0, users - 1 do
    local name = args[3] .. "-" .. user
    if share > 0 then
      local body = string.format('{"text": "%s", "username": "%s", "timeout": 3600}', text, name)
      posts[user] = wrk.format("POST", "/chat", headers, body)
    end
    if share < 1 then
      reads[user] = wrk.format("GET", "/chat/" .. name, no_body)
    end
  end
end

function request()
  number = number + 1
  local user = in_turn and number % users or math.random(0, users - 1)
  return math.random() < share and posts[user] or reads[user]
end

function done(summary, latency)
  local errors, seconds = summary.errors, summary.duration / 1e6
  local bad = errors.status + errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '{"requests": %d, "errors": %d, "seconds": %f, "rate": %f, ' ..
    '"p50": %f, "p90": %f, "p99": %f, "p999": %f, "worst": %f}\n',
    summary.requests, bad, seconds, summary.requests / seconds,
    latency:percentile(50) / 1e6, latency:percentile(90) / 1e6, latency:percentile(99) / 1e6,
    latency:percentile(99.9) / 1e6, latency.max / 1e6))
end
