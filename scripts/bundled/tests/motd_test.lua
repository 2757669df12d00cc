local function says(params, text)
  file.write("/etc/hostname", "guest7\n")
  assert(test.run(params, {foretold = true}).result.changed)
  assert(file.read("/etc/motd") == text, file.read("/etc/motd"))
end

return {
  says_what_is_given = function()
    says({title = "Welcome"}, "Welcome\n\nContact: the owner of this machine\n")
  end,

  takes_several_lines = function()
    says({title = "Welcome", lines = {"one", "two"}}, "Welcome\n\none\ntwo\n\nContact: the owner of this machine\n")
  end,

  takes_a_template = function()
    says({title = "Welcome", text = "{{title}} to {{ hostname }}\n{{contact}}\n", contact = "ops@example.org"},
      "Welcome to guest7\nops@example.org\n")
  end,

  refuses_what_it_does_not_know = function()
    test.run({titel = "x"}, {fails = "did you mean title?"})
    test.run({title = "x", lines = {{}}}, {fails = "lines[1] must be a string"})
  end,

  survives_a_crash = function()
    file.write("/etc/motd", "old\n")
    test.crash({title = "Welcome"})
  end,
}
