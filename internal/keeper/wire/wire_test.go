package wire

import (
	"bytes"
	"reflect"
	"testing"
	"time"
)

func TestFrames(t *testing.T) {
	o := Opening{Session: "s", Secret: "x", Cols: 80, Rows: 24, Lease: time.Minute, Window: 1 << 20, Argv: []string{"/bin/sh", "-c", ""}, Env: []string{"A=b", ""}}
	kind, body, err := Read(bytes.NewReader(o.Append(nil)), MaxBody)
	if err != nil || kind != Open {
		t.Fatalf("%c, %v", kind, err)
	}
	if got, err := ParseOpening(body); err != nil || !reflect.DeepEqual(got, o) {
		t.Errorf("%+v, %v", got, err)
	}
	a := Attachment{Session: "s", Secret: "x", Received: 5, Window: 6}
	kind, body, err = Read(bytes.NewReader(a.Append(nil)), MaxBody)
	if err != nil || kind != Attach {
		t.Fatalf("%c, %v", kind, err)
	}
	if got, err := ParseAttachment(body); err != nil || got != a {
		t.Errorf("%+v, %v", got, err)
	}
	if _, _, err := Read(bytes.NewReader(o.Append(nil)), 10); err == nil {
		t.Error("a long frame was read")
	}
}

// FuzzParse: no body panics, and what is read is written the same.
func FuzzParse(f *testing.F) {
	f.Add((&Opening{Session: "s", Secret: "x", Cols: 80, Rows: 24, Lease: time.Minute, Argv: []string{"a"}}).Append(nil)[Head:])
	f.Add((&Attachment{Session: "s", Secret: "x"}).Append(nil)[Head:])
	f.Fuzz(func(t *testing.T, body []byte) {
		if o, err := ParseOpening(body); err == nil && !bytes.Equal(o.Append(nil)[Head:], body) {
			t.Errorf("%q is %+v", body, o)
		}
		if a, err := ParseAttachment(body); err == nil && !bytes.Equal(a.Append(nil)[Head:], body) {
			t.Errorf("%q is %+v", body, a)
		}
	})
}
