// Package scripttest runs the tests of scripts where their author works: no guest, no host, no rights.
//
//	site.lua ─────► the agent's own journal, rooms and runner ──► a scratch tree
//	site_test.lua ─► runner ─► test.run, test.crash_at … ──┘       commands are answered, not run
//
// Of a file NAME_test.lua beside a script, or in tests there, which returns a table of functions, each is a case with a tree of
// its own. A run that commits is followed by one on a copy that must change nothing, a run that fails must leave the tree as it
// was, and at a crash an agent, a process of its own, is killed for certain. A script without such a file is run like that
// without parameters, and killed at its calls that change something, at 25 of them at most.
//
// Not here: what a test can call (builtins/trial), and the command line.
package scripttest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/trial"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Config says how scripts are tested. The zero value works.
type Config struct {
	// Modules are sent along with each script, by name.
	Modules map[string][]byte
}

// Tester tests scripts, one at a time. The program must call ChildMain, and be a runner where it is started as one, first
// of all.
type Tester struct {
	config Config
	pool   *sandbox.Pool
}

// New makes a tester.
func New(config Config) *Tester { return &Tester{config, sandbox.New(sandbox.Config{})} }

// Close ends what the tester has running.
func (t *Tester) Close() { t.pool.Close() }

// Result is what became of one case.
type Result struct {
	// Name is the case's; "(no test file)" where the script has none.
	Name string
	Took time.Duration
	// Log is what the test logged.
	Log []string
	// Err is why it failed; nil: it passed.
	Err error
}

// noTests names the case of a script without a test file.
const noTests = "(no test file)"

// Test tests one script and calls tell with each result. The error is of what kept it from being tested.
func (t *Tester) Test(ctx context.Context, name string, tell func(Result)) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	script := source{filepath.Base(name), text}
	base := strings.TrimSuffix(script.name, ".lua") + "_test.lua"
	beside := filepath.Join(filepath.Dir(name), base)
	cases, err := os.ReadFile(beside)
	if errors.Is(err, fs.ErrNotExist) {
		beside = filepath.Join(filepath.Dir(name), "tests", base)
		cases, err = os.ReadFile(beside)
	}
	if errors.Is(err, fs.ErrNotExist) {
		tell(timed(noTests, func() ([]string, error) { return nil, t.bare(ctx, script) }))
		return nil
	}
	if err != nil {
		return err
	}
	test := source{strings.TrimSuffix(filepath.Base(beside), ".lua"), cases}
	names, err := t.names(ctx, script, test)
	if err != nil {
		return err
	}
	for _, name := range names {
		tell(timed(name, func() ([]string, error) { return t.one(ctx, script, test, name) }))
	}
	return context.Cause(ctx)
}

func timed(name string, f func() ([]string, error)) Result {
	began := time.Now()
	log, err := f()
	return Result{name, time.Since(began), log, err}
}

// The test is a module of these, so that its lines are its own.
const (
	listCases = `local names, cases = json.array(), require(params.test)
if type(cases) ~= "table" then
  error(params.test .. ".lua: a test file returns a table of named functions", 0)
end
for name, case in pairs(cases) do
  if type(name) ~= "string" or type(case) ~= "function" then
    error(params.test .. ".lua: a test file returns a table of named functions, and " .. tostring(name) .. " is none", 0)
  end
  names[#names + 1] = name
end
return names`
	runCase = `require(params.test)[params.case]()`
)

// names lists the cases of a test, in the order in which they stand there.
func (t *Tester) names(ctx context.Context, script, test source) ([]string, error) {
	outcome, err := t.inStage(ctx, script, test, listCases, "", nil)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, v := range outcome.Result.GetTable().GetArray() {
		names = append(names, string(v.GetString_()))
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s.lua returns no cases: a test file returns a table of named functions", test.name)
	}
	return names, nil
}

// one runs one case, and gives what it logged.
func (t *Tester) one(ctx context.Context, script, test source, name string) (log []string, err error) {
	_, err = t.inStage(ctx, script, test, runCase, name, func(line *pb.LogLine) { log = append(log, line.Message) })
	return log, err
}

// inStage runs a test with a scratch tree of its own.
func (t *Tester) inStage(ctx context.Context, script, test source, main, name string, log func(*pb.LogLine)) (out sandbox.Outcome, err error) {
	s, err := t.newStage(script)
	if err != nil {
		return out, err
	}
	text := func(key, value string) *pb.LuaField {
		return &pb.LuaField{Key: []byte(key), Value: &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(value)}}}
	}
	start := &pb.RunnerStart{
		Name: "test", Source: []byte(main), Modules: map[string][]byte{test.name: test.text},
		Params: &pb.LuaTable{Fields: []*pb.LuaField{text("case", name), text("test", test.name)}}, Functions: TestFunctions(),
	}
	out = t.pool.Run(ctx, sandbox.Job{Start: start, Call: s.call, Log: log})
	if e := out.Error; e != nil {
		err = errors.New(failure(e))
	}
	return out, errors.Join(err, s.close())
}

// bare tests a script that has no test file.
func (t *Tester) bare(ctx context.Context, script source) error {
	if missing, err := t.required(ctx, script); err != nil || len(missing) > 0 {
		if err == nil {
			err = fmt.Errorf("it requires %s, so it needs a test file, %s_test.lua", strings.Join(missing, ", "), strings.TrimSuffix(script.name, ".lua"))
		}
		return err
	}
	s, err := t.newStage(script)
	if err != nil {
		return err
	}
	if _, err = s.run(ctx, &pb.TrialRunArgs{}); err == nil {
		_, err = s.crash(ctx, &pb.TrialCrashArgs{})
	}
	return errors.Join(err, s.close())
}

// required are the parameters without which a script does not run.
func (t *Tester) required(ctx context.Context, script source) (names []string, err error) {
	outcome := t.pool.Run(ctx, sandbox.Job{Start: &pb.RunnerStart{Name: script.name, Source: script.text, Describe: true, Modules: t.config.Modules,
		Functions: Functions(), Unsupported: all.Unsupported}, Call: refuse})
	if outcome.Error != nil {
		return nil, errors.New(failure(outcome.Error))
	}
	for _, param := range outcome.Declaration.GetParams().GetFields() {
		for _, f := range param.GetValue().GetTable().GetFields() {
			if string(f.GetKey()) == "required" && f.GetValue().GetBoolean() {
				names = append(names, string(param.GetKey()))
			}
		}
	}
	return names, nil
}

func refuse(context.Context, *pb.RunnerCall) *pb.RunnerReply {
	return &pb.RunnerReply{Error: &pb.RunnerError{Code: "refused", Message: "a declaration calls nothing"}}
}

// Functions are the builtins of an agent as a runner gets them.
func Functions() []*pb.RunnerFunction { return functions(all.New(all.Config{}).List()...) }

// TestFunctions are what the test of a script can call.
func TestFunctions() []*pb.RunnerFunction {
	return functions(all.New(all.Config{}).Named("file"), trial.Stage{}.Room())
}

func functions(rooms ...builtins.Room) (list []*pb.RunnerFunction) {
	table := builtins.NewTable(rooms...)
	scopes := table.Scopes()
	for _, op := range table.Functions() {
		list = append(list, sandbox.Function(op, scopes[op.Room()]))
	}
	return list
}
