-- A Windows service that is there: its parameters, how it starts, and whether it runs. One whose parameters were changed is
-- started again behind the last line of the script; if it does not stay up all is taken back.

local SERVICES = "HKLM\\SYSTEM\\CurrentControlSet\\Services\\"

local function set_parameters(name, parameters)
  local names, changed = {}, false
  for key in pairs(parameters) do
    names[#names + 1] = key
  end
  table.sort(names)
  for _, key in ipairs(names) do
    if registry.set(SERVICES .. name .. "\\Parameters", key, parameters[key]) then
      changed = true
    end
  end
  return changed
end

return script {
  name = "windows-service",
  version = "1.0",
  description = "set the parameters of a Windows service, how it starts, and whether it runs",
  params = {
    name = {
      type = "string", required = true, pattern = "^[^/\\]+$", description = "by which programs know it, such as W32Time",
    },
    enabled = {type = "boolean", description = "whether it starts with the guest; false disables it"},
    running = {type = "boolean", description = "whether it runs"},
    parameters = {type = "map", default = {}, description = "values of its key Parameters: strings, numbers, lists of strings"},
  },
  os = {"windows"},
  needs = {"registry", "service", "tx"},

  run = function(p)
    local was = service.status(p.name) -- an error where there is none
    local parameters = set_parameters(was.name, p.parameters)
    local enabled = false
    if p.enabled == true then
      enabled = service.enable(was.name)
    end
    local running = false
    if p.running == false or (p.enabled == false and p.running == nil and was.running) then
      running = service.stop(was.name)
    elseif parameters and was.running then
      tx.notify(was.name, "restart")
    elseif p.running and not was.running then
      running = service.start(was.name)
    end
    if p.enabled == false then
      enabled = service.disable(was.name)
    end
    return {changed = parameters or enabled or running, parameters = parameters, enabled = enabled, running = running}
  end,
}
