# The plugin_data of NodeAttestor "tpm".
source "hash_dir" "inventory" {
  path = "/srv/tpm/hashes"
}
source "hash_dir" "stolen" {
  path   = "/srv/tpm/stolen"
  marker = ".mounted"
}

allow "inventory" { any = ["inventory"] }
deny  "stolen"    { any = ["stolen"] }
