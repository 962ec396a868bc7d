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
  # The Dockerfile has no EXPOSE, so this is a worker. If it serves, add a route
  # and
  #   port "http" { number = 8080 }
  # The Dockerfile's HEALTHCHECK (/healthy) is not carried over: an instance
  # without ports is ready once its process runs.
  # Nothing outside of the environment can be reached until it is named:
  #   egress = ["api.example.com:443"]
  image = image.app

  limits {
    memory = "256MiB"
  }
}

# notes:
# The definition was made from the Dockerfile.
