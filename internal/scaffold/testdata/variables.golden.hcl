# Written by `kiln init` from docker-compose.yml. Check the comments: they say
# what was chosen, and what Kiln does otherwise.
#
# Instances are read-only but for the `writable` paths, start all at once
# (there is no depends_on: programs wait for what they need), and reach
# nothing outside of the environment until a service names it:
#   egress = ["api.example.com:443"]
#
# Variables of the Compose file have their defaults here, or are empty.
# Nothing was read from .env or from the machine.

variable "hostile" {
  type        = string
  default     = ""
  description = "Given from outside in docker-compose.yml."
}

gate {
  # What an image must be to run: findings of severity high fail.
  # Without a database of vulnerabilities there is nothing to judge by. `kiln db
  # update` brings one; take this line out then:
  no_database = "warn"
}

image "app" {
  # kiln.lock keeps the digest, so latest means what it meant at the first `kiln
  # up`. A version says more.
  # The Compose file takes the version from outside. Write the right one.
  reference = "example.com/app:latest"
}

image "cache" {
  # kiln.lock keeps the digest, so latest means what it meant at the first `kiln
  # up`. A version says more.
  reference = "docker.io/library/redis:latest"
}

service "app" {
  # The port 53/udp is not carried over: Kiln has no udp ports.
  # Not carried over: privileged, network_mode.
  image = image.app
  env = {
    HOSTILE = var.hostile
    SECRET  = ""
  }

  port "http" {
    number   = 80
    protocol = "http"
  }
}

service "cache" {
  # Chosen: port 6379, which this image is known for.
  # Chosen: this image starts as root and steps down, for which it needs these
  # capabilities.
  image        = image.cache
  capabilities = ["CHOWN", "SETGID", "SETUID"]

  port "tcp" {
    number   = 6379
    protocol = "tcp"
  }
}

route "app" {
  # Chosen: a name that means this machine. Write your own host, with a
  # certificate:
  #   tls { mode = "acme" }
  host = "app.localhost"
  to   = service.app
}

# notes:
# The definition was made from docker-compose.yml.
