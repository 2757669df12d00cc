// Gen compiles the .proto files of the directory above and writes their Go code beside them. It is the whole protocol
// compiler: a Go program that needs nothing installed.
//
// Run it with go generate in wire/pb. With -check it writes nothing and fails if a file would change.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// In the order of their imports.
var files = []string{"script.proto", "ops.proto", "runner.proto", "trial.proto", "journal.proto", "agent.proto"}

func main() {
	check := flag.Bool("check", false, "fail if a generated file is out of date")
	flag.Parse()
	if err := run(*check); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(check bool) error {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	linked, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: files,
		Parameter:      proto.String("paths=source_relative"),
	}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		request.ProtoFile = append(request.ProtoFile, describe(file))
	}
	for _, file := range linked {
		add(file)
	}
	plugin, err := protogen.Options{}.New(request)
	if err != nil {
		return err
	}
	for _, file := range plugin.Files {
		if file.Generate {
			internal_gengo.GenerateFile(plugin, file)
		}
	}
	response := plugin.Response()
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, file := range response.File {
		if err := write(file.GetName(), []byte(file.GetContent()), check); err != nil {
			return err
		}
	}
	return nil
}

// describe keeps the comments, which protodesc alone would lose.
func describe(file protoreflect.FileDescriptor) *descriptorpb.FileDescriptorProto {
	if file, ok := file.(interface {
		FileDescriptorProto() *descriptorpb.FileDescriptorProto
	}); ok {
		return file.FileDescriptorProto()
	}
	return protodesc.ToFileDescriptorProto(file)
}

func write(name string, content []byte, check bool) error {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if check {
		return fmt.Errorf("%s is out of date: run go generate ./wire/pb", name)
	}
	return os.WriteFile(name, content, 0o644)
}
