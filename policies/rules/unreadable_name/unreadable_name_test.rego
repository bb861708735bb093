package sallyport.rules.unreadable_name_test

import data.sallyport.rules.unreadable_name

samples := object.remove(data.rules.unreadable_name.samples, ["settings"])

# The samples' own, so that they hold whatever a user makes of the policy's settings.
settings := data.rules.unreadable_name.samples.settings

test_samples if {
	count(samples) > 0
	every sample in samples {
		target := unreadable_name.target with input as sample.input
			with data.settings.unreadable_name as settings
		target == sample.expected.target
		observed := unreadable_name.deny with input as sample.input
			with data.settings.unreadable_name as settings
		observed == {message | some message in sample.expected.deny}
	}
}

test_a_state_that_is_not_mentioned_is_denied if {
	observed := unreadable_name.deny with input as {"name": {"value": "", "state": "partial", "ech": false}}
		with data.settings.unreadable_name.states as {"malformed": "allow"}
	observed == {"the server name is partial"}
}

test_a_misspelled_treatment_is_denied if {
	observed := unreadable_name.deny with input as {"name": {"value": "", "state": "partial", "ech": false}}
		with data.settings.unreadable_name.states as {"partial": "alow"}
	observed == {"the server name is partial"}
}
