# The configuration of Kiln's control plane on this machine. Everything here has
# a default, and what is below shows it or an example. `kiln config check FILE`
# says what is wrong with a file; `kiln reload` takes it, as a whole or not at
# all. Everything that can be said is in kilnd.hcl(5).

# The data directory. The units say it too, and win: kiln install --data moves it.
# data = "@DATA@"

# listen {
#   http  = [":8080"]  # [":80"] for the usual ports
#   https = [":8443"]  # [":443"]
# }

# The API for other machines, by TLS. Without it only the Unix socket is there,
# for root and the group kiln.
# api {
#   listen = ["0.0.0.0:9443"]
# }

# Who may use it: `kiln token create ci --role deploy` prints such a block.
# token "ci" {
#   role   = "deploy"
#   sha256 = "..."
# }

# storage {
#   max = "40GiB"  # images, caches, seals and logs together; no bound when unsaid
# }

# log {
#   level = "info"
# }
