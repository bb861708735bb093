# The commands of the README. Each rests on `make setup`, which takes seconds when nothing is missing.

# Settings for another Python (a virtual environment, pyenv) must not reach the project's own.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz bench vm-test vm-ci vm-matrix vm-stories vm-first-run box vagrant-test lock clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## install what is missing; leaves the command in .venv/bin/sallyport
	@scripts/setup

# The demo decides with the embedded evaluator, so it need not wait for an opa to be built.
demo: ## run the engine on real traffic in a lab of network namespaces (root, or sudo)
	@scripts/setup --no-opa
	@scripts/as-root .venv/bin/sallyport lab

test: setup ## run every check and every test that needs no virtual machine (root, or sudo)
	@scripts/test

DURATION ?= 3600
fuzz: setup ## look for inputs that break a parser, DURATION=3600 seconds long (docs/fuzzing.md)
	@scripts/fuzz long --duration $(DURATION)

bench: setup ## measure the figures of docs/bench.json (root, or sudo; a quiet machine)
	@scripts/as-root .venv/bin/python -m tests.bench

vm-test: ## run the kernel tests and the lab in a throw-away machine: KERNEL=6.1, TESTS=tests/kernel (QEMU)
	@python3 -m vagrant.vm test --kernel $(or $(KERNEL),6.1) $(TESTS)

vm-ci: setup ## the verdicts on one more kernel, KERNEL=6.1, in minutes: nothing is built; installs QEMU (root, or sudo)
	@KERNEL=$(or $(KERNEL),6.1) scripts/machine $(TESTS)

vm-matrix: ## the same and more on four kernels, or on KERNEL, with TESTS; writes docs/kernels.md
	@python3 -m vagrant.vm matrix $(addprefix --kernel ,$(KERNEL)) $(TESTS)

vm-stories: ## play vagrant/scenarios on two machines, reboots and power cuts included; KERNEL=6.1 (QEMU)
	@python3 -m vagrant.vm stories --kernel $(or $(KERNEL),6.1)

vm-first-run: ## set up clean Debian systems and run the lab in them (QEMU; root)
	@python3 -m vagrant.vm first-run

box: ## build a Vagrant box (libvirt) from Debian packages, for where none can be downloaded (root)
	@scripts/as-root python3 -m vagrant.vm box

vagrant-test: ## make the box, bring up both machines of the Vagrantfile, play the stories, destroy them (root)
	@scripts/as-root python3 -m vagrant.vm vagrant

lock: ## resolve the Python dependencies anew and write the lock files
	@scripts/lock

clean: ## remove what setup and the tools made here (system packages stay)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
