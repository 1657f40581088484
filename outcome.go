package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/edgehost/edgehost/abi"
)

// outcome is what became of a record: the line of a record as docs/abi.md has it
// with, in front, the output when it is not the default, or why it was rejected.
type outcome struct {
	abi.Record
	Output   string
	Rejected string
}

// appendJSON appends the outcome as one line of JSON.
func (o *outcome) appendJSON(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, '{')
	for _, mark := range [][2]string{{"output", o.Output}, {"rejected", o.Rejected}} {
		if mark[1] != "" {
			text, _ := json.Marshal(mark[1]) // a string always can
			dst = fmt.Appendf(dst, "%q:%s,", mark[0], text)
		}
	}
	record := len(dst)
	dst = abi.AppendJSON(dst, &o.Record)
	if record == at+1 {
		return append(dst[:at], dst[record:]...)
	}
	return append(dst[:record], dst[record+1:]...)
}

// parseOutcome reads a line that appendJSON wrote, or a person.
func parseOutcome(line []byte) (outcome, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(line, &fields); err != nil {
		return outcome{}, fmt.Errorf("parse record: %w", err)
	}
	var o outcome
	for key, to := range map[string]*string{"output": &o.Output, "rejected": &o.Rejected} {
		if raw, ok := fields[key]; ok {
			if err := json.Unmarshal(raw, to); err != nil {
				return outcome{}, fmt.Errorf("parse %s: %w", key, err)
			}
			delete(fields, key)
		}
	}
	rest, err := json.Marshal(fields)
	if err != nil {
		return outcome{}, fmt.Errorf("parse record: %w", err)
	}
	o.Record, err = abi.ParseJSON(rest)
	return o, err
}

// maxLine bounds one line of NDJSON, in bytes: a record with every attribute
// full is smaller.
const maxLine = 16 << 20

// eachLine calls f for every line of a file that is not empty. "-" is standard
// input.
func eachLine(stdin io.Reader, path string, f func(line []byte) error) error {
	in := stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("read records: %w", err)
		}
		defer func() { _ = file.Close() }() // only read
		in = file
	}
	return scanLines(in, path, f)
}

func scanLines(in io.Reader, path string, f func(line []byte) error) error {
	s := bufio.NewScanner(in)
	s.Buffer(nil, maxLine)
	for n := 1; s.Scan(); n++ {
		line := bytes.TrimSpace(s.Bytes())
		if len(line) == 0 {
			continue
		}
		if err := f(line); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("read %s: a line is longer than %d MiB: is it NDJSON, one record a line?", path, maxLine>>20)
	} else if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// readRecords reads a file of records, one a line.
func readRecords(stdin io.Reader, path string) ([]abi.Record, error) {
	var out []abi.Record
	err := eachLine(stdin, path, func(line []byte) error {
		r, err := abi.ParseJSON(line)
		out = append(out, r)
		return err
	})
	return out, err
}

// readOutcomes reads a file of outcomes, one a line.
func readOutcomes(stdin io.Reader, path string) ([]outcome, error) {
	var out []outcome
	err := eachLine(stdin, path, func(line []byte) error {
		o, err := parseOutcome(line)
		out = append(out, o)
		return err
	})
	return out, err
}
