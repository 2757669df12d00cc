package telemetry

import (
	"context"
	"sync"
)

// listen starts nothing: changes are told by the next report.
func listen(context.Context, *sync.WaitGroup, chan<- struct{}) {}
