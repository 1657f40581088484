package main

import (
	"context"
	"errors"
	"log/slog"
)

// newHost makes the host of a configuration.
func newHost(context.Context, *config, *slog.Logger) (runner, error) {
	return nil, errors.New("this build has no host")
}
