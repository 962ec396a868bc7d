package main

import (
	"fmt"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/test/rig"
)

const host = "bench.test"

// define writes the definition of one web service of the test application.
func define(r *rig.Rig, version string, count int) {
	r.Write("kiln.hcl", fmt.Sprintf(`
gate { no_database = "warn" }

image "app" {
  dockerfile { context = "app" }
}

service "web" {
  image = image.app
  count = %d
  port "http" {
    number   = 8080
    protocol = "http"
  }
  env    = { VERSION = %q, GOMAXPROCS = "1" }
  ready  { http = "/healthz" }
  limits { memory = "32MiB" }
}

route "web" {
  host = %q
  to   = service.web
}
`, count, version, host))
}

func up(r *rig.Rig) control.UpResult {
	var result control.UpResult
	r.JSON(&result, "up")
	return result
}

// ready lists the instances that are ready.
func ready(r *rig.Rig) []kiln.Instance {
	var all, out []kiln.Instance
	r.JSON(&all, "ps")
	for _, i := range all {
		if i.State == kiln.InstanceReady {
			out = append(out, i)
		}
	}
	return out
}
