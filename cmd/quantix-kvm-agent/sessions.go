package main

import (
	"context"

	"go.uber.org/zap"
)

// watchSessions hears of users' sessions until ctx ends, and calls changed at each change.
func watchSessions(ctx context.Context, changes <-chan uint32, changed func(), log *zap.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-changes:
			log.Info("session change", zap.Uint32("event", event))
			changed()
		}
	}
}
