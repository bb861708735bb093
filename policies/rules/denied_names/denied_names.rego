# Names that nothing may connect to: a listed name and everything below it.
package sallyport.rules.denied_names

scope := {"name"}

deny contains message if {
	some suffix in suffixes
	why := data.settings.denied_names.suffixes[suffix]
	message := sprintf("%s is denied by the entry %s: %s", [input.name.value, suffix, why])
}

# a.b.example → {a.b.example, b.example, example}: one look-up each, however long the list is.
suffixes contains suffix if {
	labels := split(input.name.value, ".")
	some from, _ in labels
	suffix := concat(".", array.slice(labels, from, count(labels)))
}
