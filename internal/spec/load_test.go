package spec_test

import (
	"encoding/json"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/spec"
)

// folder makes a file system of files' contents.
func folder(files map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, content := range files {
		out[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
	}
	return out
}

func load(t *testing.T, src string, opt spec.Options) *spec.Definition {
	t.Helper()
	def, err := spec.Load(folder(map[string]string{"kiln.hcl": src}), opt)
	if err != nil {
		t.Fatal(diagnostics(err))
	}
	return def
}

// diagnostics returns an error's diagnostics as text.
func diagnostics(err error) string {
	var e *kiln.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	return e.Message + "\n" + kiln.Diagnostics(e.Diagnostics).Error()
}

func TestLoadShop(t *testing.T) {
	def := load(t, `
image "base" {
  debian {
    suite    = "bookworm"
    packages = ["tzdata", "ca-certificates", "tzdata"]
  }
}
image "web" {
  dockerfile {
    context  = "web"
    contexts = { base = image.base }
  }
}
variable "replicas" {
  type    = number
  default = 3
}
locals {
  hosts = { a = "a.localhost", b = "b.localhost" }
}
service "web" {
  image = image.web
  count = var.replicas
  port "http" { number = 8080 }
  env = { ORDERS_URL = service.orders.url, WHERE = environment.name, PORT = service.orders.port.http.number }
  ready { http = "/healthz" }
  limits {
    memory = "128MiB"
    cpu    = 0.5
  }
  writable = { "/tmp" = "64MiB" }
  egress   = ["api.stripe.com:443", "192.0.2.0/24:53/udp"]
  rollout "blue-green" {
    park = "10m"
    verify "home" { http = "/" }
    verify "smoke" {
      command = ["smoke", service.web.url]
      image   = image.base
    }
  }
}
service "orders" {
  image = image.web
  port "http" { number = 9000 }
}
service "worker" {
  for_each = toset(["mail", "bill"])
  image    = image.web
  command  = ["work", each.key]
}
route "shop" {
  for_each = local.hosts
  host     = each.value
  to       = service.web
}
environment "production" {
  branch = "main"
  values = { replicas = 2 }
}
environment "preview" { branches = ["feature/*"] }
`, spec.Options{})
	b, _ := json.MarshalIndent(def, "", " ")
	t.Log(string(b))
	if def.Environment.Name != "production" || len(def.Spec.Services) != 4 || def.Spec.Services[1].Name != "web" || def.Spec.Services[1].Count != 2 {
		t.Fatalf("unexpected definition: %s", b)
	}
}
