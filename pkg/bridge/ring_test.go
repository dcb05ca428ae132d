package bridge

import (
	"bytes"
	"testing"
)

// FuzzRing plays producer and consumer and compares with a plain slice.
// Each pair of bytes is a step: what, and how many KiB or bytes.
func FuzzRing(f *testing.F) {
	f.Add([]byte{0, 255, 1, 10, 0, 255, 1, 255, 3, 0})
	f.Add([]byte{0, 255, 1, 200, 0, 255, 0, 255, 1, 255, 1, 255, 3, 0, 2, 7})
	f.Add([]byte{2, 1, 1, 1, 3, 0, 2, 255, 4, 9, 0, 255, 5, 0})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var r ring
		defer r.release()
		var model []byte
		var next byte
		put := func(limit int) {
			limit = min(limit, ringSize-r.size)
			if limit == 0 {
				return
			}
			p := r.space(limit)
			if len(p) == 0 || len(p) > limit {
				t.Fatalf("space of %d for %d, %d held", len(p), limit, r.size)
			}
			for i := range p {
				p[i] = next
				next = next*5 + 3
			}
			model = append(model, p...)
			r.commit(len(p))
		}
		for len(steps) >= 2 {
			n := int(steps[1])
			switch steps[0] % 6 {
			case 0:
				put(n << 8)
			case 1:
				p := r.data(n << 8)
				if !bytes.Equal(p, model[:len(p)]) || len(p) == 0 && n > 0 && len(model) > 0 {
					t.Fatalf("data of %d bytes is not the oldest of %d", len(p), len(model))
				}
				r.consume(len(p))
				model = model[len(p):]
			case 2:
				put(n)
			case 3:
				r.release()
				if (r.buf == nil) != (len(model) == 0) {
					t.Fatalf("memory held: %t, bytes held: %d", r.buf != nil, len(model))
				}
			case 4: // a frame is written while the pump reads into free space
				p := r.data(n << 8)
				sent := bytes.Clone(p)
				put(n << 8)
				if !bytes.Equal(p, sent) {
					t.Fatal("a read overwrote what is being sent")
				}
				r.consume(len(p))
				model = model[len(p):]
			case 5: // a frame is done while the pump's read is under way
				if ringSize == r.size {
					break
				}
				in := r.space(ringSize - r.size)
				p := r.data(n << 8)
				r.consume(len(p))
				model = model[len(p):]
				in = in[:min(len(in), n)]
				for i := range in {
					in[i] = next
					next = next*5 + 3
				}
				model = append(model, in...)
				r.commit(len(in))
			}
			if r.size != len(model) {
				t.Fatalf("size %d, want %d", r.size, len(model))
			}
			steps = steps[2:]
		}
		for len(model) > 0 {
			p := r.data(ringSize)
			if len(p) == 0 || !bytes.Equal(p, model[:len(p)]) {
				t.Fatalf("data of %d bytes is not the oldest of %d", len(p), len(model))
			}
			r.consume(len(p))
			model = model[len(p):]
		}
	})
}
