package gateway

import (
	"fmt"
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// heldShare of the memory limit is what all sessions together may hold for their clients; with what the garbage
	// collector leaves lying meanwhile it may become half as much again.
	heldShare = 8
	// mostHeld is as much where the limit is larger, or there is none, in bytes.
	mostHeld = 128 << 20
)

// memoryLimit has the Go runtime stay below 90% of the memory that the control group allows, unless GOMEMLIMIT says what
// it stays below. It returns that, in bytes, 0 if there is no limit, and what sessions may hold of it. After an error
// the runtime has no limit.
func memoryLimit() (limit, held int64, err error) {
	limit, err = memlimit.Set()
	if err != nil {
		err = fmt.Errorf("reading the memory limit: %w", err)
	}
	if limit == math.MaxInt64 {
		return 0, mostHeld, err
	}
	return limit, min(limit/heldShare, mostHeld), err
}
