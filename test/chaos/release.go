package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/test/load"
	"github.com/kilnproject/kiln/test/rig"
)

const (
	host      = "chaos.test"
	count     = 3  // instances of each service
	memoryMiB = 64 // limit of each instance
)

// definition is two services that call each other, three instances each.
const definition = `
gate { no_database = "warn" }

image "app" {
  dockerfile { context = "app" }
}

service "web" {
  image = image.app
  count = %[2]d
  port "http" {
    number   = 8080
    protocol = "http"
  }
  env    = { VERSION = %[1]q, GOMAXPROCS = "1", BACK = service.back.url }
  ready  { http = "/healthz" }
  limits { memory = "%[3]dMiB" }
  rollout "blue-green" {
    verify "front" { http = "/" }
  }
}

service "back" {
  image = image.app
  count = %[2]d
  port "http" {
    number   = 8080
    protocol = "http"
  }
  env    = { VERSION = %[1]q, GOMAXPROCS = "1" }
  ready  { http = "/healthz" }
  limits { memory = "%[3]dMiB" }
}

route "web" {
  host = %[4]q
  to   = service.web
}
`

// define writes the next version.
func (c *chaos) define() {
	c.version++
	c.rig.Write("kiln.hcl", fmt.Sprintf(definition, fmt.Sprintf("v%d", c.version), count, memoryMiB, host))
}

// command is a `kiln` that ends with ctx.
func (c *chaos) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.rig.Bin("kiln"), append([]string{"--data", c.rig.Data}, args...)...)
}

// errBusy says that one such thing is under way already.
var errBusy = errors.New("another was under way")

// up begins to release the next version; other things happen meanwhile.
func up(c *chaos, _ event) error {
	return c.move(func(ctx context.Context) error {
		c.define()
		out, err := c.command(ctx, "-C", c.rig.Work, "up", "--json").Output()
		if err != nil {
			return refusal(err)
		}
		var result control.UpResult
		if err := json.Unmarshal(out, &result); err != nil {
			return fmt.Errorf("read what up said: %w", err)
		}
		c.acknowledge(result.Release.Number)
		return nil
	})
}

// rollback begins to go back to the release before.
func rollback(c *chaos, _ event) error {
	return c.move(func(ctx context.Context) error {
		_, err := c.command(ctx, "-C", c.rig.Work, "rollback", "--json").Output()
		return refusal(err)
	})
}

// refusal is what a command said.
func refusal(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("exit %d: %s", exit.ExitCode(), firstLine(string(exit.Stderr)))
	}
	return err
}

// move runs one move of the environment beside everything else.
func (c *chaos) move(do func(context.Context) error) error {
	if !c.moving.TryLock() {
		return errBusy
	}
	c.lasting.Go(func() {
		defer c.moving.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), rig.Longest)
		defer cancel()
		begin := time.Now()
		err := do(ctx)
		if ctx.Err() != nil {
			c.problem("a move took longer than %s", rig.Longest)
		}
		c.log(fmt.Sprintf("move ended after %s", time.Since(begin).Round(time.Millisecond)), err)
	})
	return nil
}

func (c *chaos) acknowledge(release int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acknowledged = append(c.acknowledged, release)
}

// ask runs `kiln ... --json` and decodes what it says. The control plane may be
// away for a while.
func (c *chaos) ask(v any, args ...string) error {
	return c.await(rig.Longest, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		out, err := c.command(ctx, append([]string{"-C", c.rig.Work}, append(args, "--json")...)...).Output()
		if err != nil {
			return refusal(err)
		}
		return json.Unmarshal(out, v)
	})
}

// ready are the instances that are ready, of all releases.
func (c *chaos) ready() ([]kiln.Instance, error) {
	var all, out []kiln.Instance
	if err := c.ask(&all, "ps"); err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.State == kiln.InstanceReady {
			out = append(out, i)
		}
	}
	return out, nil
}

// whole returns nil when every instance that is desired is ready.
func (c *chaos) whole() error {
	var s control.Status
	if err := c.ask(&s, "status"); err != nil {
		return err
	}
	for _, e := range s.Environments {
		for _, one := range e.Services {
			if one.Ready < one.Desired || one.Desired != count {
				return fmt.Errorf("%s has %d of %d ready", one.Name, one.Ready, one.Desired)
			}
		}
		if len(e.Services) != 2 {
			return fmt.Errorf("%d services are live", len(e.Services))
		}
	}
	return nil
}

// records checks that what was acknowledged is in the history.
func (c *chaos) records() error {
	var all []kiln.Release
	if err := c.ask(&all, "releases"); err != nil {
		return err
	}
	known := map[int]kiln.Release{}
	lives := 0
	for _, r := range all {
		known[r.Number] = r
		if r.State == kiln.ReleaseLive {
			lives++
		}
		if r.State == kiln.ReleasePending {
			c.broken("release %d is %s", r.Number, r.State)
		}
	}
	if lives != 1 {
		c.broken("%d releases are live", lives)
	}
	c.report.Releases = len(c.acknowledged)
	for _, n := range c.acknowledged {
		if r, ok := known[n]; !ok || r.State == kiln.ReleaseFailed {
			c.broken("release %d went live and is %q in the history", n, r.State)
		}
	}
	return nil
}

func (c *chaos) broken(format string, args ...any) {
	c.report.Records = append(c.report.Records, fmt.Sprintf(format, args...))
}

// streams are what clients ask for all the time.
func (c *chaos) streams() map[string]load.Options {
	url := "http://" + c.rig.HTTP
	longest := 30 * time.Second // freezes and a slow machine are no failures
	return map[string]load.Options{
		"GET":  {URL: url + "/", Host: host, Rate: c.rate, Timeout: longest, MaxInFlight: 8192},
		"POST": {URL: url + "/echo", Host: host, Method: "POST", Body: []byte("hello"), Rate: 20, Timeout: longest},
		"call": {URL: url + "/call?url=http://back:8080/", Host: host, Rate: 20, Timeout: longest},
	}
}
