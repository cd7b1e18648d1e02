# SPDX-License-Identifier: GPL-3.0-or-later
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# molecule and ansible-lint start ansible by name, so the venv comes first.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Named, because ansible ignores the file in a directory that others may write to.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Molecule writes an ansible.cfg of its own; what is tested must be this checkout all the same.
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/build/collections
export LC_ALL := C.UTF-8
export PYTHONUNBUFFERED := 1

# More arguments for ansible-playbook and pytest, the scenarios of `make molecule`, and how much longer `make soak` loops.
ARGS ?=
SCENARIO ?= default migrate faults
SOAK ?= 5

# Seconds for each target of `make fuzz`, rounds of `make bench-migrate`.
FUZZ ?= 60
ROUNDS ?= 3

COLLECTION := build/collections/ansible_collections/iovlab/storage
TYPED := $(COLLECTION)/plugins roles/vportd/files/vportd tests molecule tools docs
# $(call given,vm to): those of the variables that are set, as extra variables.
given = $(foreach name,$(1),$(if $($(name)),-e $(name)=$($(name))))
# One process for each CPU; what must not run side by side has a group.
UNIT := pytest --numprocesses auto --maxprocesses 4 --dist loadgroup
SOURCES = git ls-files -z --cached --others --exclude-standard

.PHONY: help
help: ## List the targets
	@echo 'iovlab.storage; targets of make:'
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16
	@echo "More arguments go in ARGS, as in: make migrate ARGS='-e key=value'"

.PHONY: setup
setup: ## Install what the lab and the playbooks need: Debian packages, .venv, collection link
	@tools/setup

.PHONY: setup-dev
setup-dev: ## Install what tests and checks need too
	@tools/setup dev

.PHONY: demo
demo: setup ## Build a lab, provision it and migrate a VM live, in one go
	@rm -f build/demo/report.txt
	@status=0; ansible-playbook playbooks/demo.yml $(ARGS) || status=$$?; \
		if [ -f build/demo/report.txt ]; then cat build/demo/report.txt; fi; exit $$status

.PHONY: demo-down
demo-down: setup ## Take the demo's lab down
	ansible-playbook playbooks/lab_down.yml $(ARGS)

.PHONY: lab-up
lab-up: setup ## Boot the lab's hypervisor VMs
	ansible-playbook playbooks/lab_up.yml $(ARGS)

.PHONY: lab-down
lab-down: setup ## Take the lab down
	ansible-playbook playbooks/lab_down.yml $(ARGS)

.PHONY: provision
provision: setup ## VFs, vdisks, mapping, vports and tenant VMs from the inventory
	ansible-playbook playbooks/provision.yml $(ARGS)

.PHONY: preflight
preflight: setup ## What each server can and cannot do; read-only (vm=NAME to=HYPERVISOR: can it be migrated there)
	ansible-playbook playbooks/preflight.yml $(call given,vm to) $(ARGS)

.PHONY: migrate
migrate: setup ## Migrate a tenant VM (vm=NAME to=HYPERVISOR mode=direct|stay_mediated|offline)
	ansible-playbook playbooks/migrate.yml $(call given,vm to) $(if $(mode),-e migration_mode=$(mode)) $(ARGS)

.PHONY: migrate-abort
migrate-abort: setup ## Abort a migration that is under way (vm=NAME)
	ansible-playbook playbooks/migrate_abort.yml $(call given,vm) $(ARGS)

.PHONY: recover
recover: setup ## Bring a half-finished migration to one end (vm=NAME, lost=HYPERVISOR if one is powered off)
	ansible-playbook playbooks/recover.yml $(call given,vm to lost) $(ARGS)

.PHONY: evacuate
evacuate: setup ## Empty a hypervisor for maintenance (host=HYPERVISOR)
	ansible-playbook playbooks/evacuate.yml $(call given,host) $(ARGS)

.PHONY: return
return: setup ## Bring back the VMs that evacuate moved away (host=HYPERVISOR)
	ansible-playbook playbooks/return.yml $(call given,host) $(ARGS)

.PHONY: test
test: ## Everything CI runs: setup, lint, sanity, galaxy, docs, unit, molecule
	@tools/stages setup-dev checks unit molecule

.PHONY: checks
checks: setup-dev ## sanity, lint, galaxy and docs, two at a time
	$(MAKE) --jobs 2 --output-sync=target sanity lint galaxy docs

.PHONY: lint
lint: setup-dev ## Check code, types, YAML, roles and shell scripts
	ruff check
	ruff format --check
	mypy $(TYPED)
	yamllint --strict .
	ANSIBLE_HOME=$(CURDIR)/build/ansible ansible-lint --strict --nocolor
	$(SOURCES) | xargs -0 awk 'FNR == 1 && /^#!.*[\/ ](ba)?sh$$/ { print FILENAME } { nextfile }' | xargs -r shellcheck
	reuse lint --quiet || { reuse lint; exit 1; }
	antsibull-changelog lint

.PHONY: sanity
sanity: setup-dev ## Run ansible-test sanity, without an ignored finding, and check the plugins' documentation
	tools/sanity

.PHONY: galaxy
galaxy: setup-dev ## Build the collection's artifact, build/galaxy/, and check it as Galaxy does
	rm -rf build/galaxy
	mkdir -p build/galaxy
	ansible-galaxy collection build --output-path build/galaxy
	cd build/galaxy && env -u ANSIBLE_CONFIG -u ANSIBLE_COLLECTIONS_PATH python -m galaxy_importer.main iovlab-storage-*.tar.gz

.PHONY: docs
docs: setup-dev ## Build the documentation as a site, build/docs/html
	tools/docs

.PHONY: changelog
changelog: setup-dev ## Take the fragments into CHANGELOG.md, under the version in galaxy.yml
	antsibull-changelog release --update-existing --reload-plugins --refresh-plugins

.PHONY: unit
unit: setup-dev ## Run the unit tests
	$(UNIT) $(ARGS)

.PHONY: molecule
molecule: setup-dev ## Run the Molecule scenarios on one lab (SCENARIO='default migrate faults')
	@tools/scenarios $(SCENARIO)

.PHONY: soak
soak: setup-dev ## The same tests with longer loops (SOAK=5 times), then the demo again and again on one lab
	IOVLAB_SOAK=$(SOAK) $(UNIT)
	IOVLAB_SOAK=$(SOAK) $(MAKE) molecule
	for run in $$(seq $(SOAK)); do echo "=== soak: demo $$run of $(SOAK)"; $(MAKE) demo; done
	$(MAKE) demo-down

.PHONY: bench
bench: setup-dev ## Measure vportd against qemu-storage-daemon (QUICK=1: under 3 minutes)
	python -m tests.bench $(if $(QUICK),--quick) $(ARGS)

.PHONY: bench-migrate
bench-migrate: setup-dev ## Measure migrations against plain libvirt with qemu-storage-daemon (ROUNDS=3), on the Molecule lab
	trap 'molecule destroy -s default' EXIT; MOLECULE_PROJECT_DIRECTORY=$(CURDIR) python -m tests.bench.migrate $(ROUNDS)

.PHONY: bench-provision
bench-provision: setup-dev ## Measure provisioning on simulated hypervisors: modules, shell, a fleet (QUICK=1: small)
	PYTHONPATH=$(CURDIR)/build/collections python -m tests.bench.provision $(if $(QUICK),--quick) $(ARGS)

.PHONY: fuzz
fuzz: setup-dev ## Fuzz the ring and the protocol of vportd, by coverage (FUZZ=60 seconds each)
	python -m tests.fuzz ring $(FUZZ)
	python -m tests.fuzz protocol $(FUZZ)

.PHONY: clean
clean: ## Remove .venv, caches and logs (a lab is removed by lab-down)
	rm -rf .venv .ansible .hypothesis build/collections build/log build/ansible build/*_cache build/hypothesis build/sanity build/docs build/galaxy
	find . -name __pycache__ -type d -not -path './build/*' -prune -exec rm -rf {} +
