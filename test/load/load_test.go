package load_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnproject/kiln/test/load"
)

func TestCountsFailuresAndVersions(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1)%10 == 0 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		w.Header().Set("Version", "one")
	}))
	defer server.Close()
	r := load.Run(t.Context(), load.Options{
		URL: server.URL, Rate: 500, Duration: 200 * time.Millisecond,
		Version: func(_ int, h http.Header, _ []byte) string { return h.Get("Version") },
	})
	if r.Sent < 50 || r.Failures["status 502"] != r.Failed || r.Failed < r.Sent/20 {
		t.Errorf("report: %+v", r)
	}
	if v := r.Versions["one"]; v == nil || v.Count != r.OK || v.Last.Before(v.First) {
		t.Errorf("versions: %+v", r.Versions)
	}
}

func TestRefusedConnectionsAreFailures(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	url := server.URL
	server.Close()
	r := load.Run(t.Context(), load.Options{URL: url, Rate: 100, Duration: 100 * time.Millisecond})
	if r.OK != 0 || r.Failed == 0 {
		t.Errorf("report: %+v", r)
	}
}
