# Names under protection: only the listed executables may connect to them or to what is below them.
package sallyport.rules.exe_names

scope := {"exe", "name"}

target_scope := {"name"}

default target := false

target if count(protected) > 0

# An unknown executable has the empty path, which no list holds.
deny contains message if {
	some suffix in protected
	executables := data.settings.exe_names.names[suffix]
	not input.exe.path in executables
	message := sprintf("%s is not for %s: it is on no list of %s", [input.name.value, program, suffix])
}

protected contains suffix if {
	labels := split(input.name.value, ".")
	some from, _ in labels
	suffix := concat(".", array.slice(labels, from, count(labels)))
	data.settings.exe_names.names[suffix]
}

default program := "an unknown program"

program := input.exe.path if input.exe.path != ""
