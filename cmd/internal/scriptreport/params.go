package scriptreport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/human"
)

// Input is where a command line reads what it names: standard input, and standard error for prompts.
type Input struct {
	Stdin  *os.File
	Stderr io.Writer
}

// UsageError is an error of the command line.
type UsageError struct{ error }

// Unwrap returns what is wrong.
func (e *UsageError) Unwrap() error { return e.error }

func usage(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// Params puts the parameters of a file and of -p together; nil where there are none.
func (in Input) Params(file string, pairs []string) (*structpb.Struct, error) {
	values := map[string]any{}
	if file != "" {
		if err := in.readParams(file, &values); err != nil {
			return nil, fmt.Errorf("--params %s: %w", file, err)
		}
	}
	for _, pair := range pairs {
		key, text, ok := strings.Cut(pair, "=")
		key, mustBeJSON := strings.CutSuffix(key, ":")
		if !ok || key == "" {
			return nil, usage("-p %s is not key=value", pair)
		}
		value, err := paramValue(text, mustBeJSON)
		if err != nil {
			return nil, usage("-p %s: %v", pair, err)
		}
		values[key] = value
	}
	if len(values) == 0 {
		return nil, nil
	}
	return structpb.NewStruct(values)
}

func (in Input) readParams(file string, to *map[string]any) error {
	text, err := in.readFile(file)
	if err != nil {
		return err
	}
	if err := decodeJSON(text, to); err != nil {
		return err
	}
	for name, value := range *to {
		exact, err := withNumbers(value)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		(*to)[name] = exact
	}
	return nil
}

// readFile reads a file; "-" is standard input.
func (in Input) readFile(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(in.Stdin)
	}
	return os.ReadFile(file)
}

// decodeJSON reads exactly one value, whose numbers are left as they were written.
func decodeJSON(text []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(to); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("there is nothing in it")
		}
		if other := new(json.UnmarshalTypeError); errors.As(err, &other) { // only an object is asked for as such
			return fmt.Errorf("it is a JSON %s in place of an object", other.Value)
		}
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something stands behind the value")
	}
	return nil
}

// paramValue reads the value of -p. Numbers become floating point on their way, so only those that come out as they were
// written are taken as numbers: 1.10 is a version and 00123 a serial number.
func paramValue(text string, mustBeJSON bool) (any, error) {
	var value any
	err := decodeJSON([]byte(text), &value)
	if err != nil && mustBeJSON {
		return nil, fmt.Errorf("the value is no JSON: %w", err)
	}
	if err != nil {
		return text, nil
	}
	if number, ok := value.(json.Number); ok && !mustBeJSON {
		f, err := number.Float64()
		if err != nil || strconv.FormatFloat(f, 'f', -1, 64) != number.String() {
			return text, nil
		}
	}
	exact, err := withNumbers(value)
	if _, one := value.(json.Number); one && err != nil && !mustBeJSON {
		return text, nil
	}
	return exact, err
}

// withNumbers makes the numbers of a JSON value floating point, as they travel. A whole one beyond 2^53 is an error: it would
// be another one.
func withNumbers(value any) (any, error) {
	switch v := value.(type) {
	case json.Number:
		f, err := v.Float64()
		if err != nil || !arrivesExactly(strings.ToLower(strings.TrimPrefix(v.String(), "-")), math.Abs(f)) {
			return nil, fmt.Errorf("the number %s would not arrive exactly; make it text, with quotes", v)
		}
		return f, nil
	case []any:
		for i := range v {
			exact, err := withNumbers(v[i])
			if err != nil {
				return nil, err
			}
			v[i] = exact
		}
	case map[string]any:
		for name := range v {
			exact, err := withNumbers(v[name])
			if err != nil {
				return nil, err
			}
			v[name] = exact
		}
	}
	return value, nil
}

// arrivesExactly reports whether text means the number f, which is not negative: a whole one up to 2^53, a fraction, or one
// with an exponent so large that nobody counts by it.
func arrivesExactly(text string, f float64) bool {
	digits, _, exponent := strings.Cut(text, "e")
	switch {
	case f == 0:
		return strings.Trim(digits, "0.") == ""
	case f < 1<<53:
		return true
	}
	return text == "9007199254740992" || exponent && f >= 1e21
}

// Secrets reads what --secret names.
func (in Input) Secrets(args []string) (map[string]string, error) {
	secrets := map[string]string{}
	for _, arg := range args {
		key, from, ok := strings.Cut(arg, "=")
		if key == "" {
			return nil, usage("--secret %s has no key", arg)
		}
		value, err := in.secret(key, from, ok)
		if err != nil {
			return nil, err
		}
		secrets[key] = value
	}
	return secrets, nil
}

func (in Input) secret(key, from string, given bool) (string, error) {
	if !given {
		return in.askSecret(key)
	}
	if file, ok := strings.CutPrefix(from, "@"); ok {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("--secret %s: %w", key, err)
		}
		value := strings.TrimSuffix(string(text), "\n")
		return strings.TrimSuffix(value, "\r"), nil
	}
	if name, ok := strings.CutPrefix(from, "env:"); ok {
		value, set := os.LookupEnv(name)
		if !set {
			return "", usage("--secret %s: the environment has no variable %s", key, name)
		}
		return value, nil
	}
	return "", usage("--secret %s: a value on the command line is seen by every user of this host; give key=@file, key=env:NAME, or the key alone", key)
}

func (in Input) askSecret(key string) (string, error) {
	if !term.IsTerminal(int(in.Stdin.Fd())) {
		line, err := ReadLine(in.Stdin)
		if err != nil {
			return "", fmt.Errorf("--secret %s: read standard input: %w", key, err)
		}
		return line, nil
	}
	fmt.Fprintf(in.Stderr, "%s: ", human.Printable(key))
	value, err := term.ReadPassword(int(in.Stdin.Fd()))
	fmt.Fprintln(in.Stderr)
	return string(value), err
}

// ReadLine reads exactly one line, and nothing after it, which may be for another reader. The end of the input ends a line
// that is not empty.
func ReadLine(from io.Reader) (string, error) {
	var line []byte
	for one := make([]byte, 1); ; {
		n, err := from.Read(one)
		if n == 1 && one[0] == '\n' || errors.Is(err, io.EOF) && len(line) > 0 {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		if err != nil {
			return "", err
		}
		line = append(line, one[:n]...)
	}
}
