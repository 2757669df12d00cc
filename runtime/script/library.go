package script

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"regexp"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
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

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// Find reads a script.
func (l *Library) Find(name string) (Script, error) {
	if !validName.MatchString(name) {
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
	return Script{}, fault.Because(fs.ErrNotExist, "no script is named %s", name)
}

func read(from fs.FS, name string, limit int64) ([]byte, error) {
	f, err := from.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fault.Invalid("not a regular file")
	case info.Size() > limit:
		return nil, fault.Because(fault.ErrTooLarge, "larger than %d bytes", limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
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
			if isLua && validName.MatchString(name) && !seen[name] {
				seen[name] = true
				list = append(list, name)
			}
		}
	}
	sort.Strings(list)
	return list, nil
}

// listScripts describes each script in a runner, nothing of it is compiled here; but not again what the last listing
// described, from the same source.
func (m *Manager) listScripts(ctx context.Context, _ *builtins.Call, _ *pb.ListScriptsRequest) (*pb.ListScriptsResponse, error) {
	names, err := m.config.Library.names()
	if err != nil {
		return nil, err
	}
	reply := &pb.ListScriptsResponse{}
	m.mu.Lock()
	known := m.described
	m.mu.Unlock()
	described := map[string]*pb.ScriptInfo{}
	for _, name := range names {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		info, lasting := m.describe(ctx, name, known)
		if lasting {
			described[info.Sha256+" "+info.SourcePath] = info
		}
		reply.Scripts = append(reply.Scripts, proto.Clone(info).(*pb.ScriptInfo))
	}
	m.mu.Lock()
	m.described = described // and what is no more there is forgotten
	m.mu.Unlock()
	return reply, nil
}

// describe tells of a script, which lasting says to be so as long as its source is the same.
func (m *Manager) describe(ctx context.Context, name string, known map[string]*pb.ScriptInfo) (_ *pb.ScriptInfo, lasting bool) {
	s, err := m.config.Library.Find(name)
	if err != nil {
		return &pb.ScriptInfo{Name: name, Error: err.Error()}, false
	}
	if info := known[s.SHA256+" "+s.Path]; info != nil {
		return info, true
	}
	info := &pb.ScriptInfo{Name: name, SourcePath: s.Path, Sha256: s.SHA256}
	declared, failure := m.declaration(ctx, s, nil)
	if failure != nil {
		info.Error = failure.Message
		return info, failure.Kind == "syntax"
	}
	if declared != nil {
		info.Version, info.Description, info.Needs, info.Readonly = declared.Version, declared.Description, declared.Needs, declared.Readonly
		if info.ParamsSchema, err = sandbox.ToStruct(declared.Params); err != nil {
			info.Error = "params: " + err.Error()
		}
		if declared.Name != name {
			info.Error = "the file is named " + name + ", the script in it " + declared.Name
		}
	}
	return info, true
}
