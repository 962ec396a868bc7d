package control

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
)

// verifySlack is added to a check's own timeout.
const verifySlack = 10 * time.Second

// verify takes the checks of the new release, in the order of the definition,
// before it has public traffic; the first that fails ends it.
func (d *drive) verify(ctx context.Context) error {
	for _, s := range d.rollout.To.Services {
		for _, v := range s.Rollout.Verify {
			began := d.c.now()
			within, end := d.c.begins(ctx, workCheck, "service", s.Template.Service, "check", v.Name)
			err := d.check(within, s, v)
			end(err)
			p := kiln.Progress{Stage: "verify", Subject: s.Template.Service, Step: "verify " + v.Name, Took: d.c.now().Sub(began), Done: err == nil}
			if err != nil {
				p.Error = err.Error()
			}
			d.feed.send(p)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// check takes one check of a service.
func (d *drive) check(ctx context.Context, s kiln.ReleaseService, v kiln.Verify) error {
	hint := fmt.Sprintf("mend the service, or change verify %q of service %s", v.Name, s.Template.Service)
	if v.Timeout > 0 { // the engine keeps it; this is for one that hangs
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, v.Timeout+verifySlack)
		defer cancel()
	}
	if v.HTTP != "" {
		if err := d.c.engine.Check(ctx, kiln.FleetIDOf(d.rollout.Environment, s.Template), v); err != nil {
			return kiln.Errorf(kiln.CodeFailed, hint, "verify %q of service %s: %w", v.Name, s.Template.Service, err)
		}
		return nil
	}
	result, err := d.c.engine.Run(ctx, kiln.Task{
		Environment: d.rollout.Environment, Release: d.record.To, Template: taskTemplate(s, v), Timeout: v.Timeout,
	})
	if err != nil {
		return kiln.Errorf(kiln.CodeFailed, hint, "verify %q of service %s could not be run: %w", v.Name, s.Template.Service, err)
	}
	if result.Cause.Kind == kiln.CauseExited && result.Cause.ExitCode == 0 {
		return nil
	}
	out := kiln.Errorf(kiln.CodeFailed, hint, "verify %q of service %s: %s %s",
		v.Name, s.Template.Service, strings.Join(v.Command, " "), rollout.Death(result.Cause))
	for _, line := range result.Cause.LastLog {
		out.Evidence = append(out.Evidence, "log: "+line)
	}
	return out
}

// taskTemplate is what a verifying command is run from: the service's own
// surroundings, and where another image is named, that image's user and
// folder.
func taskTemplate(s kiln.ReleaseService, v kiln.Verify) kiln.Template {
	t := s.Template
	t.Ports = nil
	t.Config.Entrypoint, t.Config.Command = v.Command, nil
	t.Config.Ready = kiln.Probe{}
	if v.Image != "" {
		t.Image = s.VerifyImages[v.Image]
		t.Config.User, t.Config.WorkingDir = "", ""
	}
	return t
}
