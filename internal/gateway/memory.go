package gateway

import (
	"fmt"
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// heldShare divides the memory limit: the quotient bounds the bytes that all sessions together hold for their clients.
	// Garbage that is not collected yet may add half as much again.
	heldShare = 8
	// mostHeld bounds the quotient, in bytes. Without a memory limit it is the bound.
	mostHeld = 128 << 20
)

// memoryLimit sets the Go runtime's memory limit to GOMEMLIMIT, or to 90% of the control group's limit. It returns the
// limit, 0 if there is none, and the part of the limit that sessions may hold for their clients, both in bytes. After an
// error the runtime has no limit.
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
