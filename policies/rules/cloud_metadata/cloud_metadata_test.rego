package sallyport.rules.cloud_metadata_test

import data.sallyport.rules.cloud_metadata

samples := object.remove(data.rules.cloud_metadata.samples, ["settings"])

# The samples' own, so that they hold whatever a user makes of the policy's settings.
settings := data.rules.cloud_metadata.samples.settings

test_samples if {
	count(samples) > 0
	every sample in samples {
		target := cloud_metadata.target with input as sample.input
			with data.settings.cloud_metadata as settings
		target == sample.expected.target
		observed := cloud_metadata.deny with input as sample.input
			with data.settings.cloud_metadata as settings
		observed == {message | some message in sample.expected.deny}
	}
}

test_no_unit_is_listed if {
	observed := cloud_metadata.deny with input as {"cgroup": {"path": "/", "unit": "", "container": ""}}
		with data.settings.cloud_metadata.units as []
	observed == {"the cloud metadata service is for listed units only"}
}
