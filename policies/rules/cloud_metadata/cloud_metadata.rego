# The cloud's metadata service hands out credentials to whoever asks: only the listed units may.
package sallyport.rules.cloud_metadata

scope := {"cgroup", "dest"}

target_scope := {"dest"}

default target := false

target if {
	some prefix in data.settings.cloud_metadata.addresses
	net.cidr_contains(prefix, input.dest.address)
}

# A process outside every systemd unit has the empty unit, which is not listed either.
deny contains "the cloud metadata service is for listed units only" if {
	not input.cgroup.unit in data.settings.cloud_metadata.units
}
