package sallyport.rules.exe_names_test

import data.sallyport.rules.exe_names

samples := object.remove(data.rules.exe_names.samples, ["settings"])

# The samples' own, so that they hold whatever a user makes of the policy's settings.
settings := data.rules.exe_names.samples.settings

test_samples if {
	count(samples) > 0
	every sample in samples {
		target := exe_names.target with input as sample.input
			with data.settings.exe_names as settings
		target == sample.expected.target
		observed := exe_names.deny with input as sample.input
			with data.settings.exe_names as settings
		observed == {message | some message in sample.expected.deny}
	}
}

test_each_listed_suffix_must_admit_the_executable if {
	observed := exe_names.deny with input as {
		"exe": {"path": "/usr/bin/a", "sha256": ""},
		"name": {"value": "x.y.test", "state": "complete", "ech": false},
	}
		with data.settings.exe_names.names as {"y.test": ["/usr/bin/a"], "x.y.test": ["/usr/bin/b"]}
	observed == {"x.y.test is not for /usr/bin/a: it is on no list of x.y.test"}
}

test_an_empty_list_admits_nobody if {
	observed := exe_names.deny with input as {
		"exe": {"path": "/usr/bin/a", "sha256": ""},
		"name": {"value": "y.test", "state": "complete", "ech": false},
	}
		with data.settings.exe_names.names as {"y.test": []}
	observed == {"y.test is not for /usr/bin/a: it is on no list of y.test"}
}
