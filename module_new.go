package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/modules"
)

// templates holds what module new writes: a folder for each language, and files
// that all of them share. A file that ends in .tmpl is a text/template of newModule.
//
//go:embed all:templates
var templates embed.FS

// sdks holds the SDKs and the contract, so that nothing has to be downloaded.
//
//go:embed abi/*.go abi/guest/*.go abi/c/edgehost.h abi/c/README.md
//go:embed abi/rust/Cargo.toml abi/rust/README.md abi/rust/src abi/rust/examples
//go:embed abi/assemblyscript/README.md abi/assemblyscript/assembly
//go:embed docs/abi.md LICENSE
var sdks embed.FS

// language is one that module new knows.
type language struct {
	Title string
	Main  string            // the file to change
	Needs string            // the toolchain
	SDK   string            // the API in a few words
	files map[string]string // folder or file of sdks -> where it goes
}

// languages are the choices of --lang, by the names of their template folders.
var languages = map[string]language{
	"go": {"Go", "main.go", "Go 1.24 or later and nothing else", "import \"github.com/edgehost/edgehost/abi/guest\"; `go doc github.com/edgehost/edgehost/abi/guest` explains it",
		map[string]string{"abi": "edgehost/abi", "abi/guest": "edgehost/abi/guest"}},
	"c": {"C", "module.c", "clang 14 or later with lld (Debian: `apt-get install clang lld`)", "`edgehost/README.md` explains it",
		map[string]string{"abi/c": "edgehost"}},
	"rust": {"Rust", "src/lib.rs", "Rust 1.63 or later with the target wasm32-unknown-unknown (`rustup target add wasm32-unknown-unknown`; Debian: `apt-get install cargo libstd-rust-dev-wasm32 lld`)", "`edgehost/README.md` explains it",
		map[string]string{"abi/rust": "edgehost", "abi/rust/src": "edgehost/src", "abi/rust/examples": "edgehost/examples"}},
	"as": {"AssemblyScript", "assembly/index.ts", "Node.js with npm; AssemblyScript 0.28 is installed into the folder by the first `make`", "`edgehost/README.md` explains it",
		map[string]string{"abi/assemblyscript": "edgehost", "abi/assemblyscript/assembly": "edgehost/assembly"}},
}

// sdkGoMod makes a module of the copied Go packages.
const sdkGoMod = "module github.com/edgehost/edgehost\n\ngo 1.24\n"

// newModule is what templates are about.
type newModule struct {
	Name, Version string
	language
}

func moduleNewCommand() *cli.Command {
	return &cli.Command{
		Name:      "new",
		Usage:     "make a folder with a module to start from",
		ArgsUsage: "NAME",
		Description: "The folder has the name of the module. It builds with make alone, holds a copy of the SDK, and has\n" +
			"records to try it on with what should become of them.\n\n" +
			"Example:\n   edgehost module new --lang go scale && make -C scale test",
		Flags: []cli.Flag{jsonFlag(),
			&cli.StringFlag{Name: "lang", Usage: "`LANGUAGE`: go, c, rust or as (AssemblyScript)"}},
		Action: moduleNew,
	}
}

func moduleNew(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "one NAME"); err != nil {
		return err
	}
	name, lang := c.Args().First(), c.String("lang")
	if err := modules.CheckName(name); err != nil {
		return &exitError{exitUsage, err}
	}
	known := slices.Sorted(maps.Keys(languages))
	l, ok := languages[lang]
	if !ok {
		return usagef("--lang %q is not a language that has an SDK%s", lang, meant(nearest(lang, known), known))
	}
	if err := os.Mkdir(name, 0o755); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists: choose another name, or remove it", name)
	} else if err != nil {
		return fmt.Errorf("make module: %w", err)
	}
	if err := writeModule(name, lang, newModule{name, version, l}); err != nil {
		return fmt.Errorf("make module: %w", err)
	}
	return show(c, map[string]string{"folder": name, "language": lang, "main": path.Join(name, l.Main)}, func(w io.Writer) {
		fmt.Fprintf(w, "%s is ready. It needs %s.\n   %-28s what it does\n   %-28s builds it and runs it over in.ndjson\n",
			name, l.Needs, path.Join(name, l.Main), "make -C "+name+" test")
	})
}

// writeModule fills the folder of a new module.
func writeModule(dir, lang string, m newModule) error {
	for _, from := range []string{"templates", path.Join("templates", lang)} {
		err := fs.WalkDir(templates, from, func(file string, d fs.DirEntry, err error) error {
			switch {
			case err != nil || file == from:
				return err
			case d.IsDir() && from == "templates": // a language
				return fs.SkipDir
			case d.IsDir() || path.Base(file) == moduleMakefile:
				return nil
			}
			text, err := fillIn(file, m)
			if err != nil {
				return err
			}
			to := strings.TrimSuffix(strings.TrimPrefix(file, from+"/"), ".tmpl")
			if to == "Makefile" { // every language ends in the same targets
				more, err := fillIn("templates/"+moduleMakefile, m)
				if err != nil {
					return err
				}
				text = append(text, more...)
			}
			return writeFile(filepath.Join(dir, filepath.FromSlash(to)), text)
		})
		if err != nil {
			return err
		}
	}
	return writeSDK(dir, lang)
}

// moduleMakefile is the template that every Makefile ends with.
const moduleMakefile = "module.mk.tmpl"

// fillIn reads a file of templates.
func fillIn(file string, m newModule) ([]byte, error) {
	text, err := fs.ReadFile(templates, file)
	if err != nil || !strings.HasSuffix(file, ".tmpl") {
		return text, err
	}
	t, err := template.New(file).Parse(string(text))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, m)
	return out.Bytes(), err
}

// writeSDK copies the SDK of a language, without its tests.
func writeSDK(dir, lang string) error {
	files := map[string]string{"docs/abi.md": "edgehost/abi.md", "LICENSE": "edgehost/LICENSE"}
	for from, to := range languages[lang].files {
		entries, err := fs.ReadDir(sdks, from)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.IsDir() && !strings.HasSuffix(e.Name(), "_test.go") {
				files[path.Join(from, e.Name())] = path.Join(to, e.Name())
			}
		}
	}
	for from, to := range files {
		text, err := fs.ReadFile(sdks, from)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, filepath.FromSlash(to)), text); err != nil {
			return err
		}
	}
	if lang == "go" {
		return writeFile(filepath.Join(dir, "edgehost", "go.mod"), []byte(sdkGoMod))
	}
	return nil
}

func writeFile(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
