package wire

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// tables reads the rows of PROTOCOL.md.
func tables(t *testing.T) (rows [][]string) {
	t.Helper()
	page, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "|") {
			var cells []string
			for _, cell := range strings.Split(strings.Trim(line, "|"), "|") {
				cells = append(cells, strings.TrimSpace(cell))
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

// The page's constants are the code's, all of them. Those of other packages are checked there.
func TestProtocolConstants(t *testing.T) {
	want := map[string]any{
		"wire.MaxFrame": MaxFrame, "wire.SmallFrame": SmallFrame, "wire.SocketChunk": SocketChunk, "wire.MaxRequest": MaxRequest, "wire.MaxElements": MaxElements,
		"wire.maxDepth": maxDepth, "wire.MaxInFlight": MaxInFlight, "wire.maxUrgent": maxUrgent, "wire.maxBulk": maxBulk,
		"wire.pieceSize": pieceSize, "wire.unsolicitedBudget": unsolicitedBudget, "wire.PayloadTimeout": PayloadTimeout,
		"wire.maxPayloadWait": maxPayloadWait, "wire.StaleAfter": StaleAfter, "wire.echoWindow": echoWindow,
		"wire.maxWaiting": maxWaiting, "wire.waitingSize": waitingSize, "wire.memoryWait": memoryWait, "wire.freeRequest": freeRequest,
		"wire.maxMaking": maxMaking, "wire.minReply": minReply, "wire.replyWait": replyWait,
	}
	for _, row := range tables(t) {
		name := strings.Trim(row[0], "`")
		if !strings.HasPrefix(name, "wire.") {
			continue
		}
		if value, ok := want[name]; !ok || fmt.Sprint(value) != row[1] {
			t.Errorf("%s is %v in the code and %s on the page", name, value, row[1])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s is not on the page", name)
	}
}

// The page's requests, replies and events are those of the envelope, all of them.
func TestProtocolPayloads(t *testing.T) {
	left := map[string]bool{}
	for i := range payloadOneof().Fields().Len() {
		field := payloadOneof().Fields().Get(i)
		left[fmt.Sprintf("%d %s", field.Number(), field.Name())] = true
	}
	number := regexp.MustCompile(`^[0-9]+$`)
	for _, row := range tables(t) {
		if !number.MatchString(row[0]) || strings.HasPrefix(row[1], "`") {
			continue
		}
		for i := 0; i+1 < len(row); i += 2 {
			key := row[i] + " " + row[i+1]
			if !left[key] {
				t.Errorf("the envelope has no %s", key)
			}
			delete(left, key)
		}
		if len(row) != 4 {
			continue
		}
		n, err := strconv.Atoi(row[0])
		if err != nil {
			t.Fatal(err)
		}
		field := payloadOneof().Fields().ByNumber(protoreflect.FieldNumber(n))
		reply := ReplyType(newOf(field))
		if reply == nil || fmt.Sprint(payloadOneof().Fields().ByName(protoreflect.Name(row[3])).Message().FullName()) != string(reply.Descriptor().FullName()) {
			t.Errorf("%s is not answered by %s", row[1], row[3])
		}
	}
	for key := range left {
		t.Errorf("%s is not on the page", key)
	}
}

func newOf(field protoreflect.FieldDescriptor) protoreflect.ProtoMessage {
	return Wrap("", nil).ProtoReflect().NewField(field).Message().Interface()
}

// The page's fields of the envelope are its fields.
func TestProtocolEnvelope(t *testing.T) {
	left := map[string]bool{}
	for i := range envelopeFields().Len() {
		if field := envelopeFields().Get(i); field.ContainingOneof() == nil {
			left[fmt.Sprintf("%d `%s`", field.Number(), field.Name())] = true
		}
	}
	for _, row := range tables(t) {
		if len(row) == 3 && strings.HasPrefix(row[1], "`") && strings.Trim(row[0], "0123456789") == "" {
			if key := row[0] + " " + row[1]; !left[key] {
				t.Errorf("the envelope has no %s", key)
			} else {
				delete(left, key)
			}
		}
	}
	if len(left) > 0 {
		t.Error("not on the page: ", left)
	}
}
