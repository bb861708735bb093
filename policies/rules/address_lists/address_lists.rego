# Prefixes that nothing may connect to.
package sallyport.rules.address_lists

scope := {"dest"}

deny contains message if {
	some prefix, why in data.settings.address_lists.denied
	net.cidr_contains(prefix, input.dest.address)
	message := sprintf("%s is within the denied prefix %s: %s", [input.dest.address, prefix, why])
}
