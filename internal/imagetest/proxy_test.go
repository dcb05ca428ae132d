//go:build image

package imagetest

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/internal/sandbox"
)

// asProxy in the environment makes this test binary a proxy that listens at the socket which is descriptor 3.
const asProxy = "TEST_AS_PROXY"

func TestMain(m *testing.M) {
	if os.Getenv(asProxy) != "" {
		if err := serveProxy(os.NewFile(3, "listener")); err != nil {
			panic(err)
		}
	}
	sandbox.Enter()
	os.Exit(m.Run())
}

// startProxy starts a proxy by which what is built in the sandbox's network reaches Debian's mirror in the machine's. It
// returns the build's arguments that name it.
func startProxy(t *testing.T) (args []string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := sandbox.Outside(exec.Command(self))
	cmd.Env = append(os.Environ(), asProxy+"=1")
	// apt may have a proxy of its own on this machine.
	if out, err := exec.Command("apt-config", "shell", "proxy", "Acquire::http::Proxy").Output(); err == nil {
		if _, proxy, ok := strings.Cut(strings.TrimSpace(string(out)), "="); ok {
			cmd.Env = append(cmd.Env, "http_proxy="+strings.Trim(proxy, "'"), "https_proxy="+strings.Trim(proxy, "'"))
		}
	}
	cmd.ExtraFiles, cmd.Stderr = []*os.File{socket}, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // which says that it was killed
	})
	if err := errors.Join(listener.Close(), socket.Close()); err != nil { // the proxy has them
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	return []string{"--build-arg", "http_proxy=" + url, "--build-arg", "https_proxy=" + url}
}

// serveProxy serves RFC 9110's two kinds of requests to a proxy: of an absolute URL, and CONNECT.
func serveProxy(socket *os.File) error {
	listener, err := net.FileListener(socket)
	if err != nil {
		return err
	}
	plain := &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}}
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			connect(w, r)
		} else {
			plain.ServeHTTP(w, r)
		}
	}))
}

func connect(w http.ResponseWriter, r *http.Request) {
	far, err := net.Dial("tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer far.Close()
	near, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer near.Close()
	if _, err := io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(near, far)
		_ = near.Close()
	}()
	_, _ = io.Copy(far, near)
	_ = far.Close()
	<-back
}
