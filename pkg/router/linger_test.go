package router

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// Who has as many lingering connections as allowed loses the oldest, and nobody else does.
func TestLingering(t *testing.T) {
	l := lingering{of: map[holder][]*connection{}}
	address := holder{network: netip.MustParsePrefix("192.0.2.1/32")}
	var dropped []string
	add := func(h holder, name string) func() {
		return l.add(h, func() { dropped = append(dropped, name) })
	}
	var over []func()
	for i := range lingeringPerSubject + 2 {
		over = append(over, add(holder{subject: "ann"}, fmt.Sprint("ann ", i)))
	}
	over = append(over, add(holder{subject: "bob"}, "bob"))
	for i := range lingeringPerAddress + 1 {
		over = append(over, add(address, fmt.Sprint("address ", i)))
	}
	if want := []string{"ann 0", "ann 1", "address 0"}; !slices.Equal(dropped, want) {
		t.Errorf("dropped %q, want %q", dropped, want)
	}
	if n := len(l.of[address]); n != lingeringPerAddress {
		t.Errorf("%d are left of the address", n)
	}
	for _, f := range over {
		f()
	}
	if len(l.of) != 0 {
		t.Errorf("%d owners are left", len(l.of))
	}
}
