package sallyport.rules.denied_names_test

import data.sallyport.rules.denied_names

samples := object.remove(data.rules.denied_names.samples, ["settings"])

# The samples' own, so that they hold whatever a user makes of the policy's settings.
settings := data.rules.denied_names.samples.settings

test_samples if {
	count(samples) > 0
	every sample in samples {
		observed := denied_names.deny with input as sample.input
			with data.settings.denied_names as settings
		observed == {message | some message in sample.expected.deny}
	}
}

test_only_the_listed_suffix_denies if {
	observed := denied_names.deny with input as {"name": {"value": "a.b.test", "state": "complete", "ech": false}}
		with data.settings.denied_names.suffixes as {"b.test": "tried", "c.test": "other"}
	observed == {"a.b.test is denied by the entry b.test: tried"}
}

test_a_suffix_ends_at_a_label if {
	observed := denied_names.deny with input as {"name": {"value": "notb.test", "state": "complete", "ech": false}}
		with data.settings.denied_names.suffixes as {"b.test": "tried"}
	observed == set()
}

test_an_empty_list_denies_nothing if {
	observed := denied_names.deny with input as {"name": {"value": "a.b.test", "state": "complete", "ech": false}}
		with data.settings.denied_names.suffixes as {}
	observed == set()
}
