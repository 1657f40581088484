package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/edgehost/edgehost/host/control"
)

// TestMain makes the test binary answer to the names of commands: edgehost is
// the program as it is, fakehost the same program around a fakeHost.
func TestMain(m *testing.M) {
	if len(os.TempDir()) > 30 { // the path of a socket must not be long
		if err := os.Setenv("TMPDIR", "/tmp"); err != nil {
			panic(err)
		}
	}
	testscript.Main(m, map[string]func(){
		"edgehost": main,
		"fakehost": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			os.Exit(runWith(ctx, openFakeHost, os.Args, os.Stdin, os.Stdout, os.Stderr))
		},
	})
}

// TestScript runs the scripts of testdata/script against the real command. They
// know more commands: "await SOCKET" waits until a host answers there,
// "await-file FILE" until a file is there, "addresses LOG" sets HEALTH and
// METRICS to where a host says in its log that it listens, and "code N" holds
// the command that follows to an exit code.
func TestScript(t *testing.T) {
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			me, err := user.Current()
			if err != nil {
				return err
			}
			e.Setenv("ME", me.Username)
			// With the race detector every command would sleep a second before it ends.
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			e.Setenv("EXAMPLES", filepath.Join(root, "examples"))
			e.Setenv("MODULES", filepath.Join(root, "host", "testdata"))
			for _, name := range []string{"KEY1", "KEY2"} {
				key := make([]byte, 32)
				if _, err := rand.Read(key); err != nil {
					return err
				}
				e.Setenv(name, base64.StdEncoding.EncodeToString(key))
			}
			var errs []error
			for name, wasm := range map[string]string{
				"one.wasm": "\x00asm\x01\x00\x00\x00 module", "two.wasm": "\x00asm\x01\x00\x00\x00 MODULE", "short.wasm": "\x00asm\x01", "empty.wasm": "\x00asm\x01\x00\x00\x00",
			} {
				errs = append(errs, os.WriteFile(filepath.Join(e.WorkDir, name), []byte(wasm), 0o600))
			}
			return errors.Join(errs...)
		},
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": func(ts *testscript.TestScript, _ bool, args []string) {
				client := control.NewClient(ts.MkAbs(args[0]))
				defer client.Close()
				until(ts, "a host on "+args[0], func() bool {
					_, err := client.Status(context.Background())
					return err == nil
				})
			},
			"addresses": func(ts *testscript.TestScript, _ bool, args []string) {
				var line struct{ Msg, Health, Metrics string }
				until(ts, "the line 'listening' in "+args[0], func() bool {
					log, err := os.ReadFile(ts.MkAbs(args[0]))
					for _, l := range bytes.Split(log, []byte("\n")) {
						if json.Unmarshal(l, &line) == nil && line.Msg == "listening" {
							return err == nil
						}
					}
					return false
				})
				ts.Setenv("HEALTH_ADDR", line.Health)
				ts.Setenv("HEALTH", "http://"+line.Health)
				ts.Setenv("METRICS", "http://"+line.Metrics)
			},
			"code": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				err = ts.Exec(args[1], args[2:]...)
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != want {
					ts.Fatalf("%v, want exit code %d", err, want)
				}
			},
			"await-file": func(ts *testscript.TestScript, _ bool, args []string) {
				until(ts, args[0], func() bool {
					info, err := os.Stat(ts.MkAbs(args[0]))
					return err == nil && info.Size() > 0
				})
			},
		},
	})
}

// patience is how long a test waits for what must come: no measure of anything,
// only longer than the slowest machine takes.
const patience = 2 * time.Minute

func until(ts *testscript.TestScript, what string, cond func() bool) {
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("waited %v for %s", patience, what)
		}
	}
}
