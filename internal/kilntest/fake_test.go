package kilntest

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
)

func fleetOf(service, version string, count int) kiln.Fleet {
	return kiln.Fleet{Environment: "production", Count: count, Template: kiln.Template{
		Service: service, Image: kiln.DigestOf([]byte(version)), Platform: "linux/amd64",
		Ports:  []kiln.Port{{Name: "http", Number: 8080, Protocol: kiln.ProtocolHTTP}},
		Config: kiln.Config{Env: map[string]string{"VERSION": version}, StartTimeout: 10 * time.Second, Grace: 5 * time.Second},
	}}
}

func status(t *testing.T, f *Fake, fleet kiln.Fleet) kiln.FleetStatus {
	t.Helper()
	o, err := f.Observe(t.Context(), fleet.Environment)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := o.Fleet(fleet.ID())
	return s
}

func TestFakeKeepsTimeByTimersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		f.BehaveService("web", Behaviour{Start: time.Minute})
		web := fleetOf("web", "1", 3)
		if err := f.Apply(t.Context(), "production", []kiln.Fleet{web}, "release 1"); err != nil {
			t.Fatal(err)
		}
		Pass(59 * time.Second)
		if n := status(t, f, web).Ready(); n != 0 {
			t.Fatalf("%d ready too early", n)
		}
		Pass(time.Second)
		if n := status(t, f, web).Ready(); n != 3 {
			t.Fatalf("%d ready, want 3", n)
		}
	})
}

func TestFakeNeverReadyBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		f.BehaveService("web", Behaviour{StartFailed: "no such file"})
		web := fleetOf("web", "1", 1)
		_ = f.Apply(t.Context(), "production", []kiln.Fleet{web}, "release 1")
		Pass(time.Minute)
		s := status(t, f, web)
		if n := len(s.Deaths); n < 10 || n > 20 || s.Deaths[0].Cause.Kind != kiln.CauseStartFailed {
			t.Fatalf("%d deaths: %+v", n, s.Deaths)
		}
		_ = f.Apply(t.Context(), "production", nil, "down")
		Pass(time.Minute)
	})
}

func TestFakeAdmitsWhatFits(t *testing.T) {
	f := NewFake()
	f.SetRoom(3)
	if err := f.Admit(t.Context(), []kiln.Fleet{fleetOf("web", "1", 3)}); err != nil {
		t.Fatal(err)
	}
	if err := f.Admit(t.Context(), []kiln.Fleet{fleetOf("web", "1", 4)}); !errors.Is(err, kiln.ErrNoRoom) {
		t.Fatalf("Admit = %v, want no room", err)
	}
	want := errors.New("asked for")
	f.Intercept(func(c Call) error {
		if c.Method == "Route" {
			return want
		}
		return nil
	})
	if err := f.Route(t.Context(), kiln.RouteTable{}); !errors.Is(err, want) {
		t.Fatalf("Route = %v", err)
	}
	if got := f.Methods(); !slices.Equal(got, []string{"Admit", "Admit", "Route"}) {
		t.Fatalf("calls %v", got)
	}
}

func TestFaultsHappenOnceAtTheNthHit(t *testing.T) {
	f, err := ParseFaults("switch.route#2=fail,park=panic")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Hit("switch.route"); err != nil {
		t.Fatal(err)
	}
	err = f.Hit("switch.route")
	if fe := (*FaultError)(nil); !errors.As(err, &fe) || fe.Label != "switch.route" {
		t.Fatalf("second hit: %v", err)
	}
	if err := f.Hit("switch.route"); err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("park did not panic")
			}
		}()
		_ = f.Hit("park")
	}()
	if got := f.Hits(); len(got) != 4 || got[3] != "park" {
		t.Fatalf("hits %v", got)
	}
	if err := (*Faults)(nil).Hit("anything"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"x", "x=burn", "=fail", "x#0=fail", "x#y=fail"} {
		if _, err := ParseFaults(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestFaultKills(t *testing.T) {
	if s := os.Getenv("KILN_FAULT"); s != "" {
		f, err := ParseFaults(s)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Hit("here")
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFaultKills$")
	cmd.Env = append(os.Environ(), "KILN_FAULT=here=kill")
	err := cmd.Run()
	ee := (*exec.ExitError)(nil)
	if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("ended with %v, want SIGKILL", err)
	}
}
