-- The message of the day: what people see when they log in.
--
-- text is a template: {{title}}, {{lines|raw}}, {{contact}} and {{hostname}} are replaced by their values.

local TEXT = [[
{{title}}

{{lines|raw}}

Contact: {{contact}}
]]

local WITHOUT_LINES = [[
{{title}}

Contact: {{contact}}
]]

return script {
  name = "motd",
  version = "1.1",
  description = "set the message of the day in /etc/motd",
  params = {
    title = {type = "string", required = true, description = "the first line"},
    lines = {type = "list", default = {}, description = "the lines after it"},
    contact = {type = "string", default = "the owner of this machine", description = "whom to ask"},
    text = {type = "string", description = "a template of your own"},
  },
  os = {"linux"},
  needs = {"file:/etc/motd", "host"},

  run = function(p)
    for i, line in ipairs(p.lines) do
      if type(line) ~= "string" then
        error("lines[" .. i .. "] must be a string")
      end
    end
    local text = p.text or (#p.lines > 0 and TEXT or WITHOUT_LINES)
    local lines = table.concat(p.lines, "\n")
    local all = {title = p.title, lines = lines, contact = p.contact, hostname = host.info().hostname}
    local vars = {}
    for name in string.gmatch(text, "{{%s*(%w+)") do
      vars[name] = all[name] -- the template does not use the others
    end
    local changed = file.template("/etc/motd", text, vars, {mode = "0644"})
    return {changed = changed, path = "/etc/motd"}
  end,
}
