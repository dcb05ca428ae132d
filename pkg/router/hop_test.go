package router

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/store"
)

// pair is a gateway that holds a session, and another that is asked for it.
func pair(t *testing.T) (holder, asked *gateway, p *peer, shell start, id string) {
	t.Helper()
	holder = resumable(t, func(c *Config) { c.AdvertiseURL = "http://holder.test" })
	asked = resumable(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	p, shell, id = holder.opened(t)
	asked.store.holder = store.Holder{URL: "http://" + holder.addr, Key: holder.live.resumable(id).passing.Key}
	return holder, asked, p, shell, id
}

// A connection is passed on to the replica that holds the session, and the ticket is spent
// there; that replica learns the client's address.
func TestPassedOn(t *testing.T) {
	holder, asked, p, shell, id := pair(t)
	p.reset()
	holder.waiting(t, 1)
	raw := asked.ticket("ws-1", waits)
	request := requestFor("ws-1", raw, v1, query("resume="+id+"&output=2"),
		with("X-Forwarded-For", "203.0.113.9"), with("X-Forwarded-Proto", "https"), with("Origin", "https://gateway.test"))
	p = asked.ask(t, request)
	wantResumed(t, p.message("ready"), true, 2, 3)
	p.output("llo")
	p.send(opBinary, "x")
	if got := <-shell.typed; got != "x" {
		t.Errorf("typed %q", got)
	}
	if !strings.Contains(holder.logs.String(), `"client":"203.0.113.9"`) {
		t.Errorf("the holder does not know the client:\n%s", holder.logs)
	}
	if reason, code := asked.ask(t, requestFor("ws-1", raw, v1, query("resume="+id))).outcome(); code != 4409 {
		t.Errorf("a used ticket: closed with %d %s", code, reason)
	}
	asked.wantMetric(2, "termgw_resumes_total", "outcome=passed_on")
	holder.wantMetric(1, "termgw_resumes_total", "outcome=resumed")
	shell.quit()
	p.message("exit")
	if f := p.rest(); f.code != 1000 {
		t.Errorf("closed with %+v", f)
	}
	if asked.taken() != 0 {
		t.Error("the replica that was asked has a session")
	}
}

// A holder that does not answer, and lived a moment ago, has most likely paused: a client that tries again by itself is told to, and
// gets no other shell. Its ticket is not spent.
func TestHolderPauses(t *testing.T) {
	_, asked, p, _, id := pair(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	url := asked.store.holder.URL
	asked.store.holder.URL, asked.store.holder.Silent = "http://"+silent.Addr().String(), 5*time.Second
	raw := asked.ticket("ws-1", waits)
	late := asked.ask(t, requestFor("ws-1", raw, v1, query("resume="+id+"&output=5&client=a&try=2")))
	if f := late.rest(); f.code != 1013 || f.reason != "overloaded" || !strings.Contains(f.text[0], `"retryable":true`) {
		t.Errorf("told %+v", f)
	}
	wantResumed(t, asked.ask(t, requestFor("ws-1", asked.ticket("ws-1", waits), v1, query("resume="+id+"&output=5"))).message("ready"), false, 0, 0)
	p.reset()
	asked.store.holder.URL = url
	p = asked.ask(t, requestFor("ws-1", raw, v1, query("resume="+id+"&output=5&client=a&try=3")))
	wantResumed(t, p.message("ready"), true, 5, 3)
	asked.store.holder.URL, asked.store.holder.Silent = "http://"+silent.Addr().String(), 20*time.Second
	p = asked.ask(t, requestFor("ws-1", asked.ticket("ws-1", waits), v1, query("resume="+id+"&output=5&client=a&try=4")))
	wantResumed(t, p.message("ready"), false, 0, 0)
}

// Where the holder is not to be reached, or does not hold the session, there is a new shell.
func TestHolderIsAway(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	h2c := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Upgrade", "h2c")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
	}))
	t.Cleanup(h2c.Close)
	for name, change := range map[string]func(holder, asked *gateway, p *peer){
		"nobody listens":   func(_, asked *gateway, _ *peer) { asked.store.holder.URL = "http://" + closed.Addr().String() },
		"it is silent":     func(_, asked *gateway, _ *peer) { asked.store.holder.URL = "http://" + silent.Addr().String() },
		"another server":   func(_, asked *gateway, _ *peer) { asked.store.holder.URL = other.URL },
		"another protocol": func(_, asked *gateway, _ *peer) { asked.store.holder.URL = h2c.URL },
		"no TLS there":     func(holder, asked *gateway, _ *peer) { asked.store.holder.URL = "https://" + holder.addr },
		"nonsense":         func(_, asked *gateway, _ *peer) { asked.store.holder.URL = "http://\x00" },
		"another key":      func(_, asked *gateway, _ *peer) { asked.store.holder.Key = "guessed" },
		"ended there":      func(holder, _ *gateway, p *peer) { p.closes(1000); p.rest(); holder.over(p.t) },
		"draining there": func(holder, asked *gateway, _ *peer) {
			_ = holder.live.refuse(time.Now(), time.Hour)
		},
		"each thinks the other holds it": func(holder, asked *gateway, _ *peer) {
			holder.store.holder, asked.store.holder = store.Holder{URL: "http://" + asked.addr, Key: "k"}, store.Holder{URL: "http://" + holder.addr, Key: "k"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			holder, asked, p, _, id := pair(t)
			change(holder, asked, p)
			p = asked.resumes(t, id, "5")
			wantResumed(t, p.message("ready"), false, 0, 0)
			if asked.taken() != 1 {
				t.Error("the shell is elsewhere")
			}
			want := id + "@"                                                                  // of any replica: what is not to be reached takes no place of its person's
			if name == "another server" || name == "another protocol" || name == "nonsense" { // it may be there
				want = id + "@replica-1"
			}
			if got := asked.store.lost; len(got) != 1 || got[0] != want {
				t.Errorf("lost: %q, want %q", got, want)
			}
			asked.wantMetric(0, "termgw_resumes_total", "outcome=passed_on")
		})
	}
}

// A replica that drains passes nothing on: the client is told so, and comes to another.
func TestDrainingPassesNothingOn(t *testing.T) {
	_, asked, _, _, id := pair(t)
	_ = asked.live.refuse(time.Now(), time.Hour)
	if reason, code := asked.resumes(t, id, "5").outcome(); code != 1012 {
		t.Errorf("told %d %s", code, reason)
	}
}

// Nobody outside can say that a request was passed on, or for whom.
func TestForgedHop(t *testing.T) {
	holder, asked, _, _, id := pair(t)
	now := time.Now()
	good := signHop(asked.store.holder.Key, id, "203.0.113.9", now)
	for name, header := range map[string][]string{
		"no key":            {signHop("", id, "203.0.113.9", now)},
		"a guessed key":     {signHop("guessed", id, "203.0.113.9", now)},
		"another session's": {signHop(asked.store.holder.Key, "another", "203.0.113.9", now)},
		"another address":   {strings.Replace(good, "203.0.113.9", "203.0.113.8", 1)},
		"an old one":        {signHop(asked.store.holder.Key, id, "203.0.113.9", now.Add(-time.Hour))},
		"a later end":       {"9" + good},
		"two":               {good, good},
		"nonsense":          {";;;"},
		"an empty one":      {""},
	} {
		refused := holder.ask(t, requestFor("ws-1", holder.ticket("ws-1", waits), v1, query("resume="+id), with(hopHeader, header...)))
		if refused.status != http.StatusConflict || refused.problem().Code != "not_held" {
			t.Errorf("%s: status %d", name, refused.status)
		}
	}
	// Also where the session is not: there the request is not passed on either.
	if refused := asked.ask(t, requestFor("ws-1", asked.ticket("ws-1", waits), v1, query("resume="+id), with(hopHeader, good))); refused.status != http.StatusConflict {
		t.Errorf("at another replica: status %d", refused.status)
	}
	p := holder.ask(t, requestFor("ws-1", holder.ticket("ws-1", waits), v1, query("resume="+id+"&output=5"), with(hopHeader, good), with("Origin", "https://elsewhere.test")))
	wantResumed(t, p.message("ready"), true, 5, 3)
}
