# Written by `kiln init` from the Dockerfile. Check the comments: they say
# what was chosen.
#
# The root file system is read-only. A program that must write to a path needs
# it in `writable`, as a tmpfs.

gate {
  # What an image must be to run: findings of severity high fail.
  # Without a database of vulnerabilities there is nothing to judge by. `kiln db
  # update` brings one; take this line out then:
  no_database = "warn"
}

image "app" {
  # What the build does not need belongs into .dockerignore, so that it does not
  # bake anew for it.
  dockerfile {
    context = "."
  }
}

service "app" {
  # The Dockerfile's VOLUME /var/lib/app is a tmpfs here: what is written there
  # is gone with the instance. State that must last belongs into a database or
  # an object store elsewhere.
  # Nothing outside of the environment can be reached until it is named:
  #   egress = ["api.example.com:443"]
  image = image.app
  writable = {
    "/var/lib/app" = "256MiB"
  }

  port "http" {
    number   = 8080
    protocol = "http"
  }

  ready {
    http     = "/ready"
    interval = "10s"
    timeout  = "500ms"
    failures = 5
  }

  limits {
    memory = "512MiB"
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
# The definition was made from the Dockerfile.
