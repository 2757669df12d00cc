package pb

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Every number, name, type and label of the contract stands, and what stands in its messages besides has a number from
// 200 up.
func TestContractNumbers(t *testing.T) {
	f, err := os.Open("testdata/contract.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	messages, enums := File_agent_proto.Messages(), File_agent_proto.Enums()
	fields, values := map[string]bool{}, 0
	names := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		if words[0] == "enum" {
			values++
			enum := enums.ByName(protoreflect.Name(words[1]))
			if v := enum.Values().ByName(protoreflect.Name(words[2])); v == nil || fmt.Sprint(v.Number()) != words[3] {
				t.Errorf("%s: got %v", lines.Text(), v)
			}
			continue
		}
		names[words[0]] = true
		message := messages.ByName(protoreflect.Name(words[0]))
		if message == nil {
			t.Fatalf("no message %s", words[0])
		}
		if len(words) == 1 {
			continue
		}
		field := message.Fields().ByName(protoreflect.Name(words[2]))
		if field == nil || fmt.Sprint(field.Number()) != words[1] || typeOf(field) != words[3] || labelOf(field) != words[4] {
			t.Errorf("%s: got %v", lines.Text(), field)
			continue
		}
		fields[string(field.FullName())] = true
	}
	if len(fields) != 385 || values != 26 || len(names) != 71 {
		t.Errorf("%d fields, %d enum values, %d messages; the contract has 385, 26, 71", len(fields), values, len(names))
	}
	for i := range messages.Len() {
		for j := range messages.Get(i).Fields().Len() {
			if field := messages.Get(i).Fields().Get(j); !fields[string(field.FullName())] && field.Number() < 200 {
				t.Errorf("%s has number %d and is not of the contract", field.FullName(), field.Number())
			}
		}
	}
}

func typeOf(field protoreflect.FieldDescriptor) string {
	switch {
	case field.IsMap():
		return "map<string,string>"
	case field.Enum() != nil:
		return string(field.Enum().Name())
	case field.Message() != nil && field.Message().ParentFile().Package() != File_agent_proto.Package():
		return string(field.Message().FullName())
	case field.Message() != nil:
		return string(field.Message().Name())
	}
	return field.Kind().String()
}

func labelOf(field protoreflect.FieldDescriptor) string {
	switch {
	case field.ContainingOneof() != nil && !field.ContainingOneof().IsSynthetic():
		return "oneof"
	case field.IsMap():
		return "map"
	case field.IsList():
		return "repeated"
	}
	return "-"
}
