package reference

// luaGlobal is a global that the runner itself defines, or keeps of Lua 5.1.
type luaGlobal struct {
	name string
	// call is how it is called; empty: it is a table, or as Lua's manual has it.
	call, text string
	// fields are what a table has.
	fields []string
}

// luaGlobals are the globals of a script other than the tables of the rooms. A test of package scripts compares them with a
// runner's.
var luaGlobals = []luaGlobal{
	{name: "params", text: "what the script was given; a declared script gets it, checked, as the argument of run"},
	{name: "secrets", text: "the secrets that were given; never logged"},
	{name: "script", call: "script {…}", text: "declares a script, as its last statement: return script {…}"},
	{name: "require", call: "require(name)", text: "the value of a module that was sent along; each is loaded once"},
	{name: "log", call: "log(…)", text: "a line of the log; log.debug, log.info, log.warn, log.error name its level", fields: []string{"debug", "error", "info", "warn"}},
	{name: "progress", call: "progress(fraction, [step])", text: "how far the script is, from 0 to 1, or nil; and what it does"},
	{name: "json", text: "json.encode(value, [{indent = n}]), json.decode(text); json.array([table]) marks a list that may be empty; json.null stands in for nil", fields: []string{"array", "decode", "encode", "null"}},
	{name: "yaml", text: "yaml.encode(value), yaml.decode(text): one document of at most 1 MiB; a null is json.null; yes, no, on and off are booleans", fields: []string{"decode", "encode"}},
	{name: "base64", text: "base64.encode(bytes), base64.decode(text)", fields: []string{"decode", "encode"}},
	{name: "random", call: "random(bytes)", text: "1 to 4096 random bytes, fit for keys"},

	{name: "_G"}, {name: "_VERSION"}, {name: "assert"}, {name: "collectgarbage", text: "does nothing"}, {name: "error"},
	{name: "getmetatable"}, {name: "ipairs"}, {name: "next"}, {name: "pairs"}, {name: "pcall"}, {name: "print", text: "as log"},
	{name: "rawequal"}, {name: "rawget"}, {name: "rawset"}, {name: "select"}, {name: "setmetatable"}, {name: "tonumber"},
	{name: "tostring"}, {name: "type"}, {name: "unpack"}, {name: "xpcall"},
	{name: "math", fields: []string{
		"abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "cosh", "deg", "exp", "floor", "fmod", "frexp", "huge", "ldexp",
		"log", "log10", "max", "min", "mod", "modf", "pi", "pow", "rad", "random", "randomseed", "sin", "sinh", "sqrt", "tan", "tanh",
	}},
	{name: "string", fields: []string{
		"byte", "char", "find", "format", "gfind", "gmatch", "gsub", "len", "lower", "match", "rep", "reverse", "sub", "upper",
	}},
	{name: "table", fields: []string{"concat", "getn", "insert", "maxn", "remove", "sort"}},
}
