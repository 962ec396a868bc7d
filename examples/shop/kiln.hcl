# A small shop: a web front end, an orders API, a worker that ships what was
# ordered, and the Redis that they share. Try it with `make demo`.

variable "web_count" {
  type        = number
  default     = 3
  description = "How many instances of the front end to run."
}

# Images are inventoried and judged before they run. The demo also runs where
# there is no database of vulnerabilities; `kiln db update` brings one, and then
# this line is not needed.

gate {
  no_database = "warn"
}

# Golden bases, straight from signed Debian archives. They hold no apt and no
# set-user-id programs, and kiln.lock names every package in them by SHA-256.

image "node" {
  debian {
    suite    = "bookworm"
    packages = ["ca-certificates", "nodejs"]
  }
}

image "python" {
  debian {
    suite    = "bookworm"
    packages = ["ca-certificates", "python3"]
  }
}

image "redis" {
  debian {
    suite    = "bookworm"
    packages = ["redis-server"]
  }
}

image "web" {
  dockerfile {
    context  = "web"
    contexts = { node = image.node }
  }
}

image "orders" {
  dockerfile {
    context  = "orders"
    contexts = { python = image.python }
  }
}

image "worker" {
  dockerfile {
    context  = "worker"
    contexts = { python = image.python }
  }
}

service "web" {
  image = image.web
  count = var.web_count

  port "http" {
    number   = 8080
    protocol = "http"
  }

  env = {
    ORDERS_URL = service.orders.url
  }

  ready {
    http = "/healthz"
  }

  limits {
    memory = "192MiB"
    pids   = 64
  }

  rollout "blue-green" {
    park = "30m"

    verify "front page" {
      http = "/"
      body = "Kiln shop"
    }
  }
}

service "orders" {
  image = image.orders
  count = 2

  port "http" {
    number   = 8000
    protocol = "http"
  }

  env = {
    REDIS = service.redis.port.redis.address
  }

  ready {
    http = "/healthz"
  }

  limits {
    memory = "96MiB"
    pids   = 64
  }
}

# No port: a worker. It starts when a release goes live and gets its TERM when
# the next one does.
service "worker" {
  image = image.worker

  env = {
    REDIS = service.redis.port.redis.address
  }

  limits {
    memory = "64MiB"
    pids   = 16
  }
}

# Its template stays the same while the rest changes, so it carries over from
# release to release and keeps what it holds.
service "redis" {
  image   = image.redis
  command = ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/data"]
  user    = "redis"

  port "redis" {
    number   = 6379
    protocol = "tcp"
  }

  writable = { "/data" = "32MiB" }

  limits {
    memory = "128MiB"
    pids   = 32
  }
}

route "shop" {
  host = "shop.localhost"
  to   = service.web
}
