package scriptreport

import (
	"os"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Attachments reads the files of --attach, each of the form name=file.
func Attachments(pairs []string) (list []*pb.Attachment, err error) {
	err = namedFiles("--attach", pairs, func(name string, data []byte) {
		list = append(list, &pb.Attachment{Name: name, Data: data})
	})
	return list, err
}

// Modules reads the files of --module, each of the form name=file; nil where there are none.
func Modules(pairs []string) (modules map[string][]byte, err error) {
	err = namedFiles("--module", pairs, func(name string, data []byte) {
		if modules == nil {
			modules = map[string][]byte{}
		}
		modules[name] = data
	})
	return modules, err
}

func namedFiles(flag string, pairs []string, give func(name string, data []byte)) error {
	for _, pair := range pairs {
		name, path, ok := strings.Cut(pair, "=")
		if !ok || name == "" || path == "" {
			return usage("%s %s is not name=file", flag, pair)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		give(name, data)
	}
	return nil
}

// Foretold counts the changes of a dry run that would be made, and the commands of which that cannot be said.
func Foretold(changes []*pb.Change) (would, unknown int) {
	for _, c := range changes {
		if c.State == pb.ChangeState_CHANGE_STATE_UNKNOWN {
			unknown++
		} else {
			would++
		}
	}
	return would, unknown
}

// DriftExit is the exit status of a command that found something not as scripts want it.
const DriftExit = 7
