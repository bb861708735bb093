# A connection to a port of named services whose name is missing or cannot be read: rules by name are blind to it,
# so what becomes of it is said here, for each state of the name.
package sallyport.rules.unreadable_name

scope := {"dest", "name"}

target_scope := {"dest"}

default target := false

target if input.dest.port in data.settings.unreadable_name.ports

deny contains message if {
	some what in unreadable
	not tolerated(what)
	message := sprintf("the server name is %s", [what])
}

unreadable contains input.name.state if input.name.state != "complete"

# The name that is seen is the outer one; the true one is encrypted.
unreadable contains "encrypted" if input.name.ech

# A state that the settings do not mention, or misspell, is denied.
default tolerated(_) := false

tolerated(what) if data.settings.unreadable_name.states[what] == "allow"
