package bridge

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

func size(cols int) string { return fmt.Sprintf(`{"type":"resize","cols":%d,"rows":24}`, cols) }

// sizes are what the terminal was given.
func sizes(f *fakeTerm) (all []string) {
	for _, e := range f.log() {
		if strings.HasPrefix(e, "resize ") {
			all = append(all, e)
		}
	}
	return all
}

const (
	engineCall = 4 * time.Millisecond // that an engine takes

	// As package session has them.
	resizeEvery   = 300 * time.Millisecond
	resizesAtOnce = 3
	resizeWait    = 250 * time.Millisecond
)

func TestWhatIsTypedAfterAResizeSeesTheNewSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{opt: Options{Ready: someReady}})
		s.term.resizing = engineCall
		var want []string
		for i := range 50 {
			s.control(t, size(i+1))
			s.input(t, fmt.Sprint("<", i+1, ">"))
			want = append(want, fmt.Sprintf("resize %dx24", i+1), fmt.Sprint("input <", i+1, ">"))
			if i >= resizesAtOnce-1 { // the first need not wait for each other
				time.Sleep(resizeEvery)
			}
		}
		synctest.Wait()
		if got := s.term.log(); !slices.Equal(got, want) {
			t.Errorf("the terminal got %q", got)
		}
	})
}

// A person drags a window, or a client is hostile; then something is typed.
func TestResizesAreCoalesced(t *testing.T) {
	for _, mode := range []string{"rw", "ro"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ready := someReady
				ready.Mode = mode
				s := startInBubble(t, setup{opt: Options{Ready: ready}, shell: session.Options{Size: terminal.Size{Cols: 80, Rows: 24}}})
				s.term.resizing = engineCall
				for i := range 500 {
					s.control(t, size(100+i))
				}
				if s.input(t, "stty size\r"); mode == "rw" {
					synctest.Wait()
					time.Sleep(2 * engineCall)
					synctest.Wait()
					if got := s.term.log(); len(got) < 2 || got[len(got)-1] != "input stty size\r" || got[len(got)-2] != "resize 599x24" {
						t.Errorf("what was typed does not see the last size: %q", got)
					}
				}
				time.Sleep(2 * resizeEvery)
				synctest.Wait()
				if got := sizes(s.term); len(got) > 3 || got[len(got)-1] != "resize 599x24" {
					t.Errorf("the terminal got %q", got)
				}
				// Without end, and with input between.
				before, began := len(sizes(s.term)), time.Now()
				for i := range 5000 {
					s.control(t, size(100+i%500))
					s.input(t, "x")
					time.Sleep(2 * time.Millisecond)
				}
				time.Sleep(2 * resizeEvery)
				synctest.Wait()
				got, most := sizes(s.term), resizesAtOnce+2*int(time.Since(began)/resizeEvery)
				if n := len(got) - before; n > most || got[len(got)-1] != "resize 599x24" {
					t.Errorf("%d sizes in %s, of at most %d; the last is %s", n, time.Since(began), most, got[len(got)-1])
				}
				if typed := s.term.typed(); mode == "rw" && len(typed) != len("stty size\r")+5000 {
					t.Errorf("%d bytes were typed", len(typed))
				}
			})
		})
	}
}

func TestUnchangedSizesCostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{opt: Options{Ready: someReady}, shell: session.Options{Size: terminal.Size{Cols: 80, Rows: 24}}})
		for range 100 {
			s.control(t, size(80))
			time.Sleep(time.Second)
		}
		s.control(t, size(81))
		time.Sleep(time.Second)
		for range 100 { // there and back, before it is given
			s.control(t, size(82))
			s.control(t, size(81))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := sizes(s.term); len(got) > 3 || got[0] != "resize 81x24" || got[len(got)-1] != "resize 81x24" {
			t.Errorf("the terminal got %q", got)
		}
	})
}

// An engine that hangs over a size delays no key for long, and the last size comes when it goes on.
func TestHungResizeDelaysNoInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{opt: Options{Ready: someReady}})
		s.term.resizing = 10 * time.Second
		began := time.Now()
		for i := range 10 {
			s.control(t, size(100+i))
		}
		s.input(t, "\x03")
		s.term.until(t, "the interrupt", func() bool { return s.term.taken > 0 })
		if took := time.Since(began); took > 2*resizeWait {
			t.Errorf("it took %s", took)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := sizes(s.term); len(got) > 2 || got[len(got)-1] != "resize 109x24" {
			t.Errorf("the terminal got %q", got)
		}
	})
}

// A session that ends takes no size that was still to come, and waits for none.
func TestEndWithASizeToCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInBubble(t, setup{opt: Options{Ready: someReady}})
		s.control(t, size(100))
		s.control(t, size(101))
		synctest.Wait()
		s.term.quit(terminal.Exit{})
		s.wait(t)
		time.Sleep(time.Minute)
		if got := sizes(s.term); !slices.Equal(got, []string{"resize 100x24"}) {
			t.Errorf("the terminal got %q", got)
		}
	})
}
