return {
  runs_on_windows_alone = function()
    test.run({key = "HKLM\\SOFTWARE\\Maker", values = {Port = 8080}}, {fails = "the script is for windows"})
  end,
}
