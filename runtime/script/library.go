package script

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// Script is a source with its name.
type Script struct {
	Name   string // what it is run by
	Path   string // where it lies, for people
	Source []byte
	SHA256 string // hex
}

// Library is where scripts lie that can be run by name: NAME is NAME.lua in the first place that has it.
type Library struct {
	places []Place
	limit  int64
}

// Place is a folder of scripts.
type Place struct {
	Name string // its path, for people
	FS   fs.FS
}

// NewLibrary looks in the given places, in this order, for files of at most limit bytes.
func NewLibrary(limit int, places ...Place) *Library { return &Library{places, int64(limit)} }

var validName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// Find reads a script.
func (l *Library) Find(name string) (Script, error) {
	if !validName().MatchString(name) {
		return Script{}, fault.Invalid("%q is no name of a script", name)
	}
	for _, place := range l.places {
		source, err := read(place.FS, name+".lua", l.limit)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		where := path.Join(place.Name, name+".lua")
		if err != nil {
			return Script{}, fault.On(where, err)
		}
		return Script{Name: name, Path: where, Source: source, SHA256: digest(source)}, nil
	}
	return Script{}, fault.Wrapf(fs.ErrNotExist, "no script is named %s", name)
}

// read reads a regular file; anything else is not opened, since that may wait for ever.
func read(from fs.FS, name string, limit int64) ([]byte, error) {
	info, err := fs.Stat(from, name)
	if err != nil {
		return nil, err
	}
	if err := readable(info, limit); err != nil {
		return nil, err
	}
	f, err := from.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, err
	}
	if err := readable(info, limit); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// readable returns why a file is no script.
func readable(info fs.FileInfo, limit int64) error {
	switch {
	case !info.Mode().IsRegular():
		return fault.Invalid("not a regular file")
	case info.Size() > limit:
		return fault.Wrapf(fault.ErrTooLarge, "larger than %d bytes", limit)
	}
	return nil
}

// names lists what can be found, each once, sorted.
func (l *Library) names() ([]string, error) {
	seen := map[string]bool{}
	var list []string
	for _, place := range l.places {
		entries, err := fs.ReadDir(place.FS, ".")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fault.On(place.Name, err)
		}
		for _, entry := range entries {
			name, isLua := strings.CutSuffix(entry.Name(), ".lua")
			if isLua && validName().MatchString(name) && !seen[name] {
				seen[name] = true
				list = append(list, name)
			}
		}
	}
	sort.Strings(list)
	return list, nil
}

// listScripts describes the scripts in runners, nothing of them is compiled here; but not again what the last listing
// described, from the same source.
func (m *Manager) listScripts(ctx context.Context, _ *builtins.Call, _ *pb.ListScriptsRequest) (*pb.ListScriptsResponse, error) {
	names, err := m.config.Library.names()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	known := m.described
	m.mu.Unlock()
	reply := &pb.ListScriptsResponse{}
	described := map[string]*pb.ScriptInfo{}
	var fresh []Script
	for _, name := range names {
		s, err := m.config.Library.Find(name)
		if err != nil {
			reply.Scripts = append(reply.Scripts, &pb.ScriptInfo{Name: name, Error: err.Error()})
			continue
		}
		info := known[s.identity()]
		if info == nil {
			fresh = append(fresh, s)
			info = &pb.ScriptInfo{Name: name, SourcePath: s.Path, Sha256: s.SHA256}
		}
		described[s.identity()] = info
		reply.Scripts = append(reply.Scripts, info)
	}
	told, err := m.descriptions(ctx, fresh)
	if err != nil {
		return nil, err
	}
	for _, s := range fresh {
		if !describe(described[s.identity()], told[s.Name]) {
			delete(described, s.identity())
		}
	}
	for i, info := range reply.Scripts { // what is kept is nobody else's
		reply.Scripts[i] = proto.Clone(info).(*pb.ScriptInfo)
	}
	m.mu.Lock()
	m.described = described // and what is no more there is forgotten
	m.mu.Unlock()
	return reply, nil
}

// identity is the same as long as a script is.
func (s Script) identity() string { return s.SHA256 + " " + s.Path }

// together is how many bytes of scripts one runner describes: no more than one script may have by default, so that all
// together do not need what one would not.
const together = 256 << 10

// descriptions has scripts say what they are. One runner reads many, each in an interpreter of its own; they could only
// lie about one another, and what counts in a run is read again for it alone. Where one of them takes a runner's life,
// each gets its own.
func (m *Manager) descriptions(ctx context.Context, list []Script) (map[string]sandbox.Description, error) {
	told := map[string]sandbox.Description{}
	for len(list) > 0 {
		batch, size := map[string][]byte{}, 0
		n := 0
		for ; n < len(list) && (n == 0 || size+len(list[n].Source) <= together); n++ {
			size += len(list[n].Source)
			if declares(list[n].Source) {
				batch[list[n].Name] = list[n].Source
			}
		}
		if len(batch) > 1 {
			limited, cancel := context.WithTimeout(ctx, describeTime)
			outcome := m.config.Pool.Run(limited, sandbox.Job{Start: &pb.RunnerStart{
				Name: "list_scripts", DescribeAll: true, Modules: batch, Functions: m.functions(), Unsupported: m.config.Unsupported,
			}, Call: noCall})
			cancel()
			maps.Copy(told, outcome.Descriptions)
		}
		for _, s := range list[:n] {
			if err := context.Cause(ctx); err != nil {
				return nil, err
			}
			if _, known := told[s.Name]; !known {
				declared, failure := m.declaration(ctx, s, nil)
				told[s.Name] = sandbox.Description{Declaration: declared, Error: failure}
			}
		}
		list = list[n:]
	}
	return told, nil
}

// describe fills in what a script says of itself, and reports whether that is so as long as its source is the same.
func describe(info *pb.ScriptInfo, told sandbox.Description) (lasting bool) {
	if told.Error != nil {
		info.Error = told.Error.Message
		return told.Error.Kind == "syntax"
	}
	declared := told.Declaration
	if declared == nil {
		return true
	}
	info.Version, info.Description, info.Needs, info.Readonly = declared.Version, declared.Description, declared.Needs, declared.Readonly
	info.Os = declared.Os
	var err error
	if info.ParamsSchema, err = sandbox.ToStruct(declared.Params); err != nil {
		info.Error = "params: " + err.Error()
	}
	if declared.Name != info.Name {
		info.Error = "the file is named " + info.Name + ", the script in it " + declared.Name
	}
	return true
}
