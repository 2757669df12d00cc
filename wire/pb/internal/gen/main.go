// Gen compiles every .proto file of a directory and writes its Go code beside it. It is the whole protocol compiler: a Go
// program that needs nothing installed.
//
// Run it with go generate in wire/pb. Generated files whose .proto file is gone are removed. With -check nothing is written or
// removed, and it fails if something would be.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	check := flag.Bool("check", false, "fail if a generated file is out of date or has no .proto file")
	flag.Parse()
	if err := run(".", *check); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// run brings the generated files of a directory up to date, or checks that they are.
func run(dir string, check bool) error {
	generated, err := generate(dir)
	if err != nil {
		return err
	}
	var failed []error
	for name, content := range generated {
		failed = append(failed, write(filepath.Join(dir, name), content, check))
	}
	present, err := filepath.Glob(filepath.Join(dir, "*.pb.go"))
	if err != nil {
		return err
	}
	for _, path := range present {
		if generated[filepath.Base(path)] == nil {
			failed = append(failed, remove(path, check))
		}
	}
	return errors.Join(failed...)
}

// generate returns the Go code of all .proto files of a directory, by the names of the files to write.
func generate(dir string) (map[string][]byte, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.proto"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("no .proto file in %s", dir)
	}
	var files []string
	for _, path := range paths {
		files = append(files, filepath.Base(path))
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	linked, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return nil, err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: files,
		Parameter:      proto.String("paths=source_relative"),
	}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor) // imports come before what imports them
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
		return nil, err
	}
	for _, file := range plugin.Files {
		if file.Generate {
			internal_gengo.GenerateFile(plugin, file)
		}
	}
	response := plugin.Response()
	if response.Error != nil {
		return nil, errors.New(response.GetError())
	}
	generated := map[string][]byte{}
	for _, file := range response.File {
		generated[file.GetName()] = []byte(file.GetContent())
	}
	return generated, nil
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

func write(path string, content []byte, check bool) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if check {
		return fmt.Errorf("%s is out of date: run go generate ./wire/pb", path)
	}
	return os.WriteFile(path, content, 0o644)
}

func remove(path string, check bool) error {
	if check {
		return fmt.Errorf("%s has no .proto file: run go generate ./wire/pb", path)
	}
	return os.Remove(path)
}
