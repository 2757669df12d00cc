package main

import (
	"context"

	"go.uber.org/zap"
)

// watchSessions hears of users' sessions until ctx ends. What works in the session of the console's user is to be told here.
func watchSessions(ctx context.Context, changes <-chan uint32, log *zap.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-changes:
			log.Info("session change", zap.Uint32("event", event))
		}
	}
}
