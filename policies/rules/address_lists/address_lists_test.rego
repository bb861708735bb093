package sallyport.rules.address_lists_test

import data.sallyport.rules.address_lists

samples := object.remove(data.rules.address_lists.samples, ["settings"])

# The samples' own, so that they hold whatever a user makes of the policy's settings.
settings := data.rules.address_lists.samples.settings

test_samples if {
	count(samples) > 0
	every sample in samples {
		observed := address_lists.deny with input as sample.input
			with data.settings.address_lists as settings
		observed == {message | some message in sample.expected.deny}
	}
}

test_every_matching_prefix_is_named if {
	observed := address_lists.deny with input as {"dest": {"address": "10.1.2.3", "port": 1, "transport": "tcp", "locality": "private"}}
		with data.settings.address_lists.denied as {"10.0.0.0/8": "a", "10.1.0.0/16": "b", "10.2.0.0/16": "c"}
	observed == {
		"10.1.2.3 is within the denied prefix 10.0.0.0/8: a",
		"10.1.2.3 is within the denied prefix 10.1.0.0/16: b",
	}
}

test_an_empty_list_denies_nothing if {
	observed := address_lists.deny with input as {"dest": {"address": "10.1.2.3", "port": 1, "transport": "tcp", "locality": "private"}}
		with data.settings.address_lists.denied as {}
	observed == set()
}
