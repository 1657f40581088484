package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// documents are the texts that a user follows, by file.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "examples/*/README.md", "examples/connector.yaml", "examples/*/config.yaml", ".env.template"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, f := range files {
			out[f] = string(readTestdata(t, f))
		}
	}
	return out
}

// fenced returns the blocks of code of a document that have one of the languages,
// without the indentation of their first line.
func fenced(text string, languages ...string) (blocks []string) {
	for _, m := range regexp.MustCompile("(?ms)^( *)```(\\w*)\n(.*?)^ *```$").FindAllStringSubmatch(text, -1) {
		if slices.Contains(languages, m[2]) {
			blocks = append(blocks, regexp.MustCompile("(?m)^"+m[1]).ReplaceAllString(m[3], ""))
		}
	}
	return blocks
}

// TestDocumentedConfiguration: every piece of YAML in the documents is what the
// program reads, as it stands there.
func TestDocumentedConfiguration(t *testing.T) {
	found := 0
	for file, text := range documents(t) {
		for _, block := range fenced(text, "yaml") {
			found++
			if c := parseConfig(file, []byte(block), anyVariable); len(c.doc.found) > 0 {
				t.Errorf("%s:\n%s\n%v", file, block, c.doc.found)
			}
		}
	}
	if found < 6 {
		t.Errorf("only %d pieces were found", found)
	}
}

// TestDocumentedCommands: every command line in the documents has a command and
// flags that there are, and every target of make is one.
func TestDocumentedCommands(t *testing.T) {
	app := newApp(newHost, strings.NewReader(""), io.Discard, io.Discard)
	span := regexp.MustCompile("`edgehost ([^`]+)`")
	line, comment := regexp.MustCompile(`(?m)^edgehost (.+)$`), regexp.MustCompile(`(?m)^#   edgehost (.+)$`)
	makefile, found := string(readTestdata(t, "Makefile")), 0
	for file, text := range documents(t) {
		written := span.FindAllStringSubmatch(text, -1)
		written = append(written, line.FindAllStringSubmatch(strings.Join(fenced(text, "", "bash"), ""), -1)...)
		written = append(written, comment.FindAllStringSubmatch(text, -1)...)
		for _, m := range written {
			found++
			if wrong := unknownWord(app.Commands, strings.Fields(m[1])); wrong != "" {
				t.Errorf("%s: %s: there is no %s", file, strings.Join(strings.Fields(m[0]), " "), wrong)
			}
		}
		for _, m := range regexp.MustCompile("`make ([a-z][a-z0-9-]*)").FindAllStringSubmatch(text, -1) {
			suite, _ := strings.CutPrefix(m[1], "conformance-")
			_, err := os.Stat("conformance/install-" + suite + ".sh")
			if !strings.Contains(makefile, "\n"+m[1]+":") && err != nil {
				t.Errorf("%s: there is no target %s", file, m[1])
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d command lines were found", found)
	}
}

// unknownWord returns the first word of a command line that is no command and no
// flag, "" when all are.
func unknownWord(commands []*cli.Command, words []string) string {
	var command *cli.Command
	for len(words) > 0 && len(commands) > 0 {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(strings.Trim(words[0], ",")) })
		if i < 0 {
			return words[0]
		}
		command, words = commands[i], words[1:]
		commands = command.Subcommands
	}
	for _, w := range words {
		name := strings.TrimLeft(w, "-")
		if w == "#" || w == "&&" {
			return ""
		}
		known := slices.ContainsFunc(command.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
		if strings.HasPrefix(w, "-") && !known && name != "help" {
			return w
		}
	}
	return ""
}

// TestEveryCommandExplainsItself: the help of each command has an example, and
// what the example writes exists.
func TestEveryCommandExplainsItself(t *testing.T) {
	app := newApp(newHost, strings.NewReader(""), io.Discard, io.Discard)
	var walk func(path string, commands []*cli.Command)
	walk = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			name := path + " " + c.Name
			if len(c.Subcommands) > 0 {
				walk(name, c.Subcommands)
				continue
			}
			if !c.Hidden && !strings.Contains(c.Description, name) {
				t.Errorf("%s --help shows no example of it", name)
			}
			for _, line := range regexp.MustCompile(`(?m)^ +edgehost (.*)$`).FindAllStringSubmatch(c.Description, -1) {
				if wrong := unknownWord(app.Commands, strings.Fields(line[1])); wrong != "" {
					t.Errorf("%s --help: %s: there is no %s", name, line[0], wrong)
				}
			}
		}
	}
	walk("edgehost", app.Commands)
}
