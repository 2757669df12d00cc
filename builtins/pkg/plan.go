package pkg

import (
	"encoding/xml"
	"regexp"
	"strings"
)

// What simulations print is read here. The version that is there is taken from the database where they do not have it.

func aptPlan(out string) (steps []step) {
	installs := regexp.MustCompile(`^Inst ([^\s:]+)(?::\S+)?(?: \[([^\]]*)\])? \((\S+) [^)]*\[([^\]]+)\]\)`)
	removes := regexp.MustCompile(`^(?:Remv|Purg) ([^\s:]+)(?::(\S+))?(?: \[([^\]]*)\])?`)
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if m := installs.FindStringSubmatch(line); m != nil {
			steps = append(steps, step{id{name: m[1], arch: m[4]}, m[2], m[3]})
		} else if m := removes.FindStringSubmatch(line); m != nil {
			steps = append(steps, step{id{name: m[1], arch: m[2]}, m[3], ""})
		}
	}
	return steps
}

func apkPlan(out string) (steps []step) {
	pattern := regexp.MustCompile(`^\(\s*\d+/\d+\) (\S+) (\S+) \(([^ )]+)(?: -> ([^)]+))?\)`)
	for line := range strings.Lines(out) {
		m := pattern.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		one := step{id: id{name: m[2]}}
		switch m[1] {
		case "Installing":
			one.after = m[3]
		case "Upgrading", "Downgrading", "Replacing":
			one.before, one.after = m[3], m[4]
		case "Purging":
			one.before = m[3]
		default:
			continue
		}
		steps = append(steps, one)
	}
	return steps
}

// pacmanPlan reads a name and a version in each line. Whether that comes or goes is the request's.
func pacmanPlan(out string) (steps []step) {
	for line := range strings.Lines(out) {
		if words := strings.Fields(line); len(words) == 2 && isName(words[0]) && isVersion(words[1]) {
			steps = append(steps, step{id: id{name: words[0]}, after: words[1]})
		}
	}
	return steps
}

// dnfPlan reads the table of a transaction: headings, and below each lines of name, architecture, version, repository and size,
// which go on in the next line where the name is long.
func dnfPlan(out string) (steps []step) {
	section := ""
	var row []string
	end := func() {
		if len(row) >= 4 {
			one := step{id: id{name: row[0], arch: row[1]}}
			if strings.HasPrefix(section, "Removing") {
				one.before = row[2]
			} else {
				one.after = row[2]
			}
			steps = append(steps, one)
		}
		row = nil
	}
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, " \r\n")
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "Transaction Summary"):
			end()
			return steps
		case len(words) == 0 || strings.HasPrefix(line, "="):
			end()
		case line[0] != ' ':
			end()
			if section = ""; strings.HasSuffix(line, ":") && dnfSection(line) {
				section = line
			}
		case section == "" || words[0] == "replacing":
			end()
		case !strings.HasPrefix(line, "  "):
			end()
			row = words
		default:
			row = append(row, words...)
		}
	}
	end()
	return steps
}

func dnfSection(heading string) bool {
	for _, word := range []string{"Installing", "Upgrading", "Downgrading", "Removing"} {
		if strings.HasPrefix(heading, word) {
			return true
		}
	}
	return false
}

// zypperPlan reads the summary of a transaction in XML.
func zypperPlan(out string) (steps []step) {
	section := ""
	for d := xml.NewDecoder(strings.NewReader(out)); ; {
		token, err := d.Token()
		if err != nil {
			return steps
		}
		element, ok := token.(xml.StartElement)
		switch {
		case !ok:
		case strings.HasPrefix(element.Name.Local, "to-"):
			section = element.Name.Local
		case element.Name.Local == "solvable":
			attr := map[string]string{}
			for _, a := range element.Attr {
				attr[a.Name.Local] = a.Value
			}
			one := step{id{name: attr["name"], arch: attr["arch"]}, attr["edition-old"], attr["edition"]}
			switch section {
			case "to-remove":
				one.before, one.after = attr["edition"], ""
			case "to-install", "to-upgrade", "to-downgrade", "to-upgrade-change-arch", "to-downgrade-change-arch":
			default:
				continue
			}
			if attr["type"] == "package" || attr["type"] == "" {
				steps = append(steps, one)
			}
		}
	}
}
