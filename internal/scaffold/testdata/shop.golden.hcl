# Written by `kiln init` from compose.yaml. Check the comments: they say what
# was chosen, and what Kiln does otherwise.
#
# Instances are read-only but for the `writable` paths, start all at once
# (there is no depends_on: programs wait for what they need), and reach
# nothing outside of the environment until a service names it:
#   egress = ["api.example.com:443"]
#
# Variables of the Compose file have their defaults here, or are empty.
# Nothing was read from .env or from the machine.

variable "session_key" {
  type        = string
  default     = ""
  description = "Given from outside in compose.yaml."
}

gate {
  # What an image must be to run: findings of severity high fail.
  # Without a database of vulnerabilities there is nothing to judge by. `kiln db
  # update` brings one; take this line out then:
  no_database = "warn"
}

image "api" {
  # The build argument TOKEN came from the machine's environment; set it here if
  # the Dockerfile needs it.
  dockerfile {
    context = "api"
    file    = "Dockerfile.prod"
    target  = "run"
    args = {
      VERSION = "1.2"
    }
  }
}

image "db" {
  reference = "docker.io/library/postgres:16"
}

image "queue-worker" {
  reference = "ghcr.io/example/worker@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
}

image "web" {
  dockerfile {
    context = "."
  }
}

service "api" {
  # The environment file .env was not read, because such files often hold
  # secrets. Name here what the program needs, and give secrets as variables.
  # ./config.yaml was mounted at /etc/api.yaml. Instances see nothing of the
  # machine: bake it into the image.
  # The volume at /var/cache/api is a tmpfs here: what is written there is gone
  # with the instance. State that must last belongs into a database or an object
  # store elsewhere.
  # Not carried over: cap_add NET_ADMIN.
  image   = image.api
  count   = 3
  command = ["./api", "--verbose"]
  writable = {
    "/tmp"           = "64MiB"
    "/var/cache/api" = "256MiB"
  }
  capabilities = ["CHOWN"]
  grace        = "1m30s"

  port "http" {
    number   = 8080
    protocol = "http"
  }

  limits {
    memory = "100MiB"
    cpu    = 0.5
  }
}

service "db" {
  # Chosen: this image starts as root and steps down, for which it needs these
  # capabilities.
  # The volume at /var/lib/postgresql/data is a tmpfs here: what is written
  # there is gone with the instance. State that must last belongs into a
  # database or an object store elsewhere.
  # The health check runs a command inside (pg_isready -U postgres). Kiln asks
  # from outside: without a ready block, a connection to the first port is
  # enough.
  # Chosen: 576MiB of memory, because the Compose file sets no limit and what is
  # written to writable paths counts as memory.
  image = image.db
  env = {
    POSTGRES_PASSWORD = ""
  }
  writable = {
    "/var/lib/postgresql/data" = "256MiB"
    "/var/run/postgresql"      = "64MiB"
  }
  capabilities = ["CHOWN", "SETGID", "SETUID"]

  port "tcp" {
    number   = 5432
    protocol = "tcp"
  }

  limits {
    memory = "576MiB"
  }
}

service "queue-worker" {
  # Called queue_worker in the Compose file. Its host name here is queue-worker.
  # Only in the profiles jobs of the Compose file. Kiln has no profiles: remove
  # it, or set count = 0.
  image = image.queue-worker
  count = 0
  user  = "1000:1000"
}

service "web" {
  image = image.web
  env = {
    API_URL     = "http://api:8080/v1"
    GREETING    = "costs $5 for you"
    SESSION_KEY = var.session_key
  }
  start_timeout = "1m30s"

  port "http" {
    number   = 3000
    protocol = "http"
  }

  port "http-9229" {
    number   = 9229
    protocol = "http"
  }

  ready {
    http     = "/health?full=1"
    interval = "5s"
    timeout  = "1s"
    failures = 4
  }
}

route "db-tcp" {
  # Chosen: only this machine can connect. Write 0.0.0.0 for all.
  listen = "127.0.0.1:5433"
  to     = service.db
}

route "web" {
  # Chosen: a name that means this machine. Write your own host, with a
  # certificate:
  #   tls { mode = "acme" }
  host = "web.localhost"
  to   = service.web
}

# notes:
# The definition was made from compose.yaml.
