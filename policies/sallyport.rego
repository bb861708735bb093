# What happens when no rule says anything, and what is dropped before any rule is asked.
package sallyport

# "allow", "deny" or "reject". A policy without this line is refused: there is no built-in default.
default_verdict := "allow"

# Sources dropped at the network card (XDP): prefixes or addresses, evaluated once at load, without input.
source_deny contains prefix if some prefix in data.settings.source_deny.prefixes
