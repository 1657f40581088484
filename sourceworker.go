package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/isolate"
	"github.com/edgehost/edgehost/sources/opcua"
)

// sourceWorkerCommand is the process of one isolated source. serve starts it; it
// is not in the help.
func sourceWorkerCommand() *cli.Command {
	return &cli.Command{Name: isolate.Command, Hidden: true, Usage: "run one source for serve", Action: func(c *cli.Context) error {
		// A stop is the parent's to tell; service managers signal every process.
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM)
		conn, err := isolate.Inherited()
		if err != nil {
			return &exitError{exitUsage, err}
		}
		return isolate.Serve(context.WithoutCancel(c.Context), conn, func(payload []byte, deps isolate.Deps) (sources.Source, error) {
			job, err := decodeJob(payload)
			if err != nil {
				return nil, err
			}
			src, err := job.source(deps.Logger, deps.Status, deps.Resume)
			if err != nil || job.Look == nil {
				return src, err
			}
			return &looker{src, job.Name, *job.Look}, nil
		})
	}}
}

// opcuaJob is all that an OPC UA source is made of; the worker gets it as JSON
// in its first frame, secrets included.
type opcuaJob struct {
	Name     string
	Endpoint string
	Tags     map[string]string
	Config   opcua.Config
	Dir      string     // of certificates
	Look     *opcuaLook // not nil: ask once instead of running
}

func (j opcuaJob) source(log *slog.Logger, st *sources.Status, resume func() []byte) (*opcua.Source, error) {
	return opcua.New(j.Name, j.Endpoint, j.Tags, j.Config, opcua.Deps{Logger: log, Status: st, Resume: resume, Dir: j.Dir})
}

// encode writes a job. JSON has one kind of number, so a float is written with
// an exponent: decodeJob tells it from an integer by that.
func (j opcuaJob) encode() ([]byte, error) {
	j.Config.Events = slices.Clone(j.Config.Events)
	for i := range j.Config.Events {
		where := slices.Clone(j.Config.Events[i].Where)
		for k := range where {
			if f, ok := where[k].Value.(float64); ok {
				where[k].Value = json.Number(strconv.FormatFloat(f, 'e', -1, 64))
			}
		}
		j.Config.Events[i].Where = where
	}
	b, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode configuration for the process of the source: %w", err)
	}
	return b, nil
}

func decodeJob(b []byte) (j opcuaJob, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&j); err != nil {
		return j, fmt.Errorf("decode configuration of the source: %w", err)
	}
	for i := range j.Config.Events {
		for k := range j.Config.Events[i].Where {
			v := &j.Config.Events[i].Where[k].Value
			n, ok := (*v).(json.Number)
			if !ok {
				continue
			}
			if *v, err = n.Int64(); err != nil || strings.ContainsAny(n.String(), "eE.") {
				if *v, err = n.Float64(); err != nil {
					return j, fmt.Errorf("decode configuration of the source: %w", err)
				}
			}
		}
	}
	return j, nil
}
