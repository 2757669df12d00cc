return {
  runs_on_windows_alone = function()
    test.run({name = "W32Time", running = true}, {fails = "the script is for windows"})
  end,
}
