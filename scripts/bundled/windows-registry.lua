-- Values of one key of the registry of Windows. Others that are in the key are kept.

-- A value as it is given: a string, a whole number, a list of strings, or {type = …, value = …}.
local function set(key, name, given, view)
  local value, kind = given, nil
  if type(given) == "table" and given.type ~= nil then
    value, kind = given.value, given.type
    if value == nil then
      error("values." .. name .. ": there is a type, and no value")
    end
  end
  return registry.set(key, name, value, kind, {view = view})
end

local function sorted(map)
  local names = {}
  for name in pairs(map) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

return script {
  name = "windows-registry",
  version = "1.0",
  description = "set values of a key of the registry, and remove others",
  params = {
    key = {
      type = "string", required = true, description = "such as HKLM\\SOFTWARE\\Maker\\Program; it is made if it is missing",
    },
    values = {
      type = "map", default = {},
      description = "by name: a string, a number, a list of strings, or {type = \"expand_sz\", value = …}",
    },
    absent = {type = "list", default = {}, description = "names of values that are removed"},
    view = {type = "integer", default = 64, enum = {32, 64}, description = "32: what programs of 32 bits see"},
  },
  os = {"windows"},
  needs = {"registry"},

  run = function(p)
    local set_names, removed = json.array(), json.array()
    for _, name in ipairs(sorted(p.values)) do
      if set(p.key, name, p.values[name], p.view) then
        set_names[#set_names + 1] = name
      end
    end
    for i, name in ipairs(p.absent) do
      if type(name) ~= "string" then
        error("absent[" .. i .. "] must be a string")
      elseif p.values[name] ~= nil then
        error("absent[" .. i .. "]: " .. name .. " is among the values as well")
      elseif registry.remove(p.key, name, {view = p.view}) then
        removed[#removed + 1] = name
      end
    end
    return {changed = #set_names + #removed > 0, set = set_names, removed = removed}
  end,
}
